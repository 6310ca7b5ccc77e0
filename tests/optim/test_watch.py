"""The watch warns once about posteriors that have collapsed or exploded, and never about sound ones."""

import copy
import warnings

import pytest
import torch
from torch import nn

import vogn
from tiny_models import fill, train
from vogn.cli.contenders import NaturalGradientContender
from vogn.cli.interruption import Interruption
from vogn.cli.run_folder import RunFolder
from vogn.cli.session import Position, Session, open_data
from vogn.cli.settings import Settings
from vogn.cli.training import SilentWatcher, Training
from vogn.errors import PosteriorWarning
from vogn.optim.watch import COLLAPSED, EXPLODED, relative_stds


def build(model=None, method="vogn", **options):
    model = model or fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    return model, vogn.METHODS[method].build(model, lr=0.01, **({"ess": 1e3, "weight_decay": 0.1} | options))


def warned(model, opt, steps, start=0):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(opt, model, steps, start=start)
    return [str(item.message) for item in caught if issubclass(item.category, PosteriorWarning)]


def run(settings):
    """What `vogn train` does, without its files."""
    contender = NaturalGradientContender(settings.method, True)
    session = Session.start(settings, contender, open_data(settings), RunFolder("unused"))
    training = Training(session, SilentWatcher(), Interruption(), "")
    for epoch in range(settings.epochs):
        session.position = Position(epoch=epoch)
        training._train_epoch()
    return session.optimizer


def test_the_ratio_is_that_of_the_posterior():
    model, opt = build(method="kfac")
    train(opt, model, 3)
    variance, mean = opt.posterior().variance(), opt.posterior().mean()
    for k, fan_in in (("0", 3), ("2", 4)):
        v = torch.cat([variance[f"{k}.{part}"].flatten() for part in ("weight", "bias")])
        m = torch.cat([mean[f"{k}.{part}"].flatten() for part in ("weight", "bias")])
        scale = max(float(m.square().mean().sqrt()), fan_in**-0.5)
        assert relative_stds(opt)[f"{k}.weight"] == pytest.approx(float(v.mean().sqrt()) / scale)


@pytest.mark.parametrize("method", sorted(vogn.METHODS))
def test_every_method_can_be_looked_at(method):
    model, opt = build(method=method)
    train(opt, model, 2)
    before = copy.deepcopy(opt.state_dict())
    found = relative_stds(opt)
    assert all(ratio > 0 for ratio in found.values())
    assert str(before) == str(opt.state_dict())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ess": 1e13}, ["has collapsed", "lower ess", "variational=False"]),
        ({"ess": 0.1, "weight_decay": 1e-3}, ["times the weights' scale", "Raise weight_decay", "raise ess"]),
    ],
)
def test_one_warning_names_the_block_and_the_remedy(options, words):
    model, opt = build(**options)
    assert warned(model, opt, 63) == []
    (message,) = warned(model, opt, 1, start=63)
    assert message.startswith("block '") and "diagnostics(per_block=True)" in message
    for word in words:
        assert word in message
    assert warned(model, opt, 64, start=64) == []


@pytest.mark.parametrize("options", [{}, {"ess": 1e13, "variational": False}])
def test_sound_and_deterministic_runs_hear_nothing(options):
    assert warned(*build(**options), 64) == []


def test_a_single_layer_may_be_as_wide_as_its_prior():
    assert warned(*build(fill(nn.Linear(3, 3).double()), ess=0.1, weight_decay=1e-3), 64) == []


def test_weights_that_are_zero_are_compared_with_initial_ones():
    model, opt = build(weight_decay=1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert warned(model, opt, 64) == []


def test_it_is_looked_at_after_doubling_numbers_of_steps_and_once_each(monkeypatch):
    model, opt = build()
    looks = []
    monkeypatch.setattr("vogn.optim.watch.relative_stds", lambda o: looks.append(o.param_groups[0]["steps_done"]) or {})
    train(opt, model, 300)
    opt.zero_grad()
    opt.step()
    assert looks == [64, 128, 256]


def test_a_prior_that_is_too_wide_for_a_deep_network_is_heard_on_digits():
    settings = Settings(method="kfac", data="digits", epochs=4, temperature=1.0, prior_precision=1.0)
    with pytest.warns(PosteriorWarning, match="noise drowns what they have learned"):
        run(settings)


@pytest.mark.parametrize("method", ["vogn", "kfac", "ivon"])
def test_the_default_run_on_digits_hears_nothing(method):
    with warnings.catch_warnings():
        warnings.simplefilter("error", PosteriorWarning)
        opt = run(Settings(method=method, data="digits", epochs=13))
    assert opt.param_groups[0]["steps_done"] >= 256 and opt._watch._looked_at == 256
    ratios = relative_stds(opt).values()
    assert max(ratios) < EXPLODED / 2 and min(ratios) > 100 * COLLAPSED
