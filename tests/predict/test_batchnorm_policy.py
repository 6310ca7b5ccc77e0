"""Which statistics a weight sample is used with, shown on a network where sharing them is visibly wrong."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import vogn
from vogn import BatchNormCalibration
from vogn.posterior import GaussianPosterior
from vogn.predict import POLICIES


def by_hand(case, batches, x, *, statistics="own"):
    """The plain loop ``(S, N, C)``: write the weights, run the loader in training mode, evaluate."""
    draws, probabilities = case.posterior.sample(case.samples, seed=case.seed), []
    for k in range(case.samples):
        model = copy.deepcopy(case.model)
        if statistics == "own":
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(draws[name][k])
        if statistics != "running":
            for module in model.modules():
                if isinstance(module, nn.BatchNorm1d):
                    module.reset_running_stats()
                    module.momentum = None
            model.train()
            for batch in batches:
                model(batch)
            model.eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(draws[name][k])
            probabilities.append(model(x).softmax(-1))
    return torch.stack(probabilities)


@pytest.mark.parametrize(
    "options, statistics",
    [
        ({"batchnorm": "recalibrate"}, "own"),
        ({}, "own"),
        ({"batchnorm": "mean"}, "mean"),
        ({"batchnorm": "mean", "calibration": None}, "running"),
    ],
    ids=["recalibrate", "default", "mean", "mean, running"],
)
def test_every_policy_equals_the_plain_loop(case, options, statistics):
    batches = case.batches()[:2]  # other statistics than the running ones, which saw all four
    found = case.predict(case.x, **{"calibration": batches, **options})
    expected = by_hand(case, batches, case.x, statistics=statistics)
    assert_close(found.mean, expected.mean(0), rtol=1e-12, atol=1e-12)
    for other in {"own", "mean", "running"} - {statistics}:
        assert (by_hand(case, batches, case.x, statistics=other).mean(0) - found.mean).abs().max() > 1e-3


def test_sharing_statistics_is_visibly_wrong(case):
    """Six layers multiply the mismatch between weights and statistics: the network is right, its average is not."""
    shared = case.predict(case.x, batchnorm="mean").nll(case.y).mean()
    own = case.predict(case.x, calibration=case.batches()).nll(case.y).mean()
    at_mean = case.predict(case.x, method="mean").nll(case.y).mean()
    assert at_mean < 0.15
    assert own < 0.35 and shared > own + 0.1


@pytest.mark.parametrize("remembered", [False, True])
def test_the_model_is_left_as_found(case, remembered):
    case.model.train()
    case.model[1].eval()
    calibration = BatchNormCalibration(case.batches())
    if remembered:
        case.predict(case.x, calibration=calibration)
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    identities = {name: id(tensor) for name, tensor in case.model.state_dict(keep_vars=True).items()}
    flags, state = [module.training for module in case.model.modules()], torch.get_rng_state()
    case.predict(case.x, calibration=calibration)
    assert all(tensor.equal(before[name]) for name, tensor in case.model.state_dict().items())
    assert {name: id(tensor) for name, tensor in case.model.state_dict(keep_vars=True).items()} == identities
    assert [module.training for module in case.model.modules()] == flags
    assert {m.momentum for m in case.model.modules() if isinstance(m, nn.BatchNorm1d)} == {0.1}
    assert torch.get_rng_state().equal(state)


def test_layers_that_the_calibration_does_not_reach_keep_their_statistics(case):
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm1d(2), nn.BatchNorm1d(2)

        def forward(self, x, *, both=False):
            return self.unused(self.used(x)) if both else self.used(x)

    model = Branches().double().eval()
    model.unused.running_mean.fill_(3.0)
    x = case.x[:8]
    point = GaussianPosterior([], {name: p.detach() for name, p in model.named_parameters()})
    found = BatchNormCalibration([x]).statistics(model, point.mean(), seed=0, draw=0)
    assert set(found) == {"used.running_mean", "used.running_var", "used.num_batches_tracked"}
    outputs = vogn.predict(
        model, point, [{"x": x, "both": True}], samples=1, likelihood=vogn.likelihoods.Gaussian(), calibration=[x]
    ).mean
    scale = (x.var(0) + 1e-5).sqrt()
    assert_close(outputs, ((x - x.mean(0)) / scale - 3.0) / (1 + 1e-5) ** 0.5)


def test_a_model_without_running_statistics_reads_nothing(case):
    for module in case.model.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
    loader = case.loader()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = case.predict(case.x).mean
        for batchnorm in POLICIES:
            assert case.predict(case.x, batchnorm=batchnorm, calibration=loader).mean.equal(plain)
    assert loader.readings == 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batchnorm": "recalibrate"}, "needs inputs for it; pass calibration="),
        ({"batchnorm": "magic"}, "'magic'; known: mean, recalibrate, or None"),
        ({"calibration": []}, "calibration holds no batches"),
        ({"calibration": [], "batchnorm": "mean"}, "calibration holds no batches"),
        ({"calibration": torch.zeros(0, 2)}, "calibration holds no examples"),
        ({"calibration": torch.zeros(257, 2, dtype=torch.float64)}, "a single value per channel.*drop_last=True"),
    ],
)
def test_unusable_calibration_raises_and_leaves_the_model_as_found(case, options, message):
    case.model.train()
    before = {name: tensor.clone() for name, tensor in case.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        case.predict(case.x, **options)
    assert all(tensor.equal(before[name]) for name, tensor in case.model.state_dict().items())
    assert all(module.training for module in case.model.modules())


def test_calibration_of_a_wrong_type_raises(case):
    with pytest.raises(TypeError, match="calibration must be a tensor.*got float"):
        case.predict(case.x, calibration=3.0)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_batches": 0}])
def test_bad_options_of_the_calibration_raise(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be >= 1"):
        BatchNormCalibration([], **options)


def test_shared_running_statistics_are_warned_about_once_per_model(case):
    with pytest.warns(UserWarning, match=r"\['1', '4', '7'\] \.\.\. use one set.*pass calibration=") as caught:
        case.predict(case.x)
        case.predict(case.x)
    assert len(caught) == 1
    assert caught[0].filename.endswith("conftest.py")  # where ``case.predict`` calls ``vogn.predict``
    with pytest.warns(UserWarning, match="use one set"):
        vogn.predict(copy.deepcopy(case.model), case.posterior, case.x, samples=2, keep_samples=False)


@pytest.mark.parametrize("options", [{"method": "mean"}, {"batchnorm": "mean"}, {"calibration": torch.eye(2).double()}])
def test_no_warning_where_statistics_are_chosen_or_right(case, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        case.predict(case.x, **options)


def test_no_warning_without_weight_noise(case):
    point = GaussianPosterior([], case.posterior.mean(), likelihood={"kind": "categorical"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vogn.predict(case.model, point, case.x, samples=2)
