"""The search for a temperature: what it compares, how it chooses, and what it refuses."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vogn
from tiny_models import fill, normal
from vogn.errors import RangeTestError
from vogn.likelihoods import Categorical
from vogn.optim.copied_runs import copies, run_ends
from vogn.optim.range_choice import STRIDE


def data(n, seed):
    x = normal(n, 4, seed=seed, dtype=torch.float32)
    return x, (x[:, :3] + 0.1 * normal(n, 3, seed=seed + 1, dtype=torch.float32)).argmax(1)


def loader():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(*data(120, 0)), batch_size=20, shuffle=True, generator=generator)


def optimizer(**options):
    model = fill(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))).float()
    settings = {"lr": 0.1, "ess": 100.0, "weight_decay": 1e-2, "damping": 1e-2} | options
    return model, vogn.VOGN(model, **settings)


def test_runs_differ_in_the_noise_alone_and_nothing_changes():
    model, opt = optimizer()
    state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    held_out = [data(60, 7)]
    found = vogn.temperature_search(opt, model, Categorical(), loader(), held_out=held_out, steps=40)
    factors = [factor for factor, _ in found.trials]
    assert factors == sorted(factors) and len(factors) >= 3 and 1.0 in factors
    losses = {}
    for factor, loss in found.trials:
        twin, network, likelihood = copies(opt, model, Categorical())
        assert twin.param_groups[0]["ess"] == 100.0 and twin.param_groups[0]["weight_decay"] == 1e-2
        twin.param_groups[0]["ess"] *= factor
        losses[factor] = run_ends(twin, network, likelihood, loader(), 0.1, 40, held_out=held_out)
        assert loss == np.mean(losses[factor])
    # 100 examples' worth of posterior drown what can be learnt here
    assert found.factor > 1.0
    assert np.mean(losses[found.factor]) == min(loss for _, loss in found.trials)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(random, torch.get_rng_state()) and opt.param_groups[0]["ess"] == 100.0


def test_further_folds_are_run_and_counted_too(monkeypatch):
    """The first fold says colder, the larger second warmer; a failure on one is one of the temperature."""
    batches, other = [loader(), loader()], [data(10, 9)]
    held_out = [data(10, 7)]

    def ends(twin, model, likelihood, where, rate, steps, **options):
        step, fold = round(math.log(twin.param_groups[0]["ess"] / 100.0, STRIDE)), batches.index(where)
        assert options["held_out"] is (held_out, other)[fold]
        if fold and step == -2:
            return []
        return [1.0 + (-0.1 if fold == 0 else 0.1) * step] * (10 + 20 * fold)

    monkeypatch.setattr("vogn.optim.temperature_search.run_ends", ends)
    model, opt = optimizer()
    found = vogn.temperature_search(
        opt, model, Categorical(), batches[0], held_out=held_out, further=[(batches[1], other)]
    )
    assert found.factor == pytest.approx(1.0 / STRIDE)
    losses = {round(math.log(factor, STRIDE)): loss for factor, loss in found.trials}
    assert losses == {-2: math.inf, -1: pytest.approx(0.95), 0: pytest.approx(1.0), 1: pytest.approx(1.05)}
    alone = vogn.temperature_search(opt, model, Categorical(), batches[0], held_out=held_out)
    assert alone.factor > 1.0


@pytest.mark.parametrize(
    "means, expected",
    [
        ({0: 1.0, 1: 0.9, 2: 0.8, 3: 0.795, 4: 0.9, -1: 1.1}, 3),
        ({0: 1.0, 1: 1.2, -1: 0.999, -2: 0.998, -3: 1.1}, -2),
        ({0: 1.0, 1: 0.995, 2: 1.1, -1: 0.9, -2: 1.0}, -1),
        ({0: None, 1: 0.9, 2: 1.0}, 1),
        ({0: 1.0, 1: None, -1: None}, 0),
    ],
)
def test_the_lowest_mean_wins_as_far_as_it_falls(monkeypatch, means, expected):
    scatter = 0.1 * torch.randn(100, generator=torch.Generator().manual_seed(0)).double()
    scatter -= scatter.mean()

    def ends(twin, model, likelihood, batches, rate, steps, **options):
        step = round(math.log(twin.param_groups[0]["ess"] / 100.0, STRIDE))
        assert rate == 0.1 and steps == 100
        mean = means[step]
        return [] if mean is None else (mean + scatter * (1 + step)).tolist()

    monkeypatch.setattr("vogn.optim.temperature_search.run_ends", ends)
    model, opt = optimizer()
    found = vogn.temperature_search(opt, model, Categorical(), loader(), held_out=[data(10, 7)])
    assert found.factor == pytest.approx(STRIDE**expected)
    assert len(found.trials) == len(means)


def test_what_it_cannot_compare_is_refused(monkeypatch):
    model, opt = optimizer(variational=False)
    with pytest.raises(ValueError, match="deterministic optimizer has no temperature"):
        vogn.temperature_search(opt, model, Categorical(), loader(), held_out=[data(10, 7)])
    model, opt = optimizer()
    with pytest.raises(ValueError, match="steps=0"):
        vogn.temperature_search(opt, model, Categorical(), loader(), held_out=[data(10, 7)], steps=0)
    with pytest.raises(ValueError, match="held_out has no examples"):
        vogn.temperature_search(opt, model, Categorical(), loader(), held_out=[], steps=2)
    with opt.sampled_params(), pytest.raises(RuntimeError, match="a temperature search"):
        vogn.temperature_search(opt, model, Categorical(), loader(), held_out=[data(10, 7)])
    monkeypatch.setattr("vogn.optim.temperature_search.run_ends", lambda *_, **__: [])
    with pytest.raises(RangeTestError, match="training fails at every temperature"):
        vogn.temperature_search(opt, model, Categorical(), loader(), held_out=[data(10, 7)])


def test_a_method_that_sets_ess_has_no_temperature():
    model = fill(nn.Linear(4, 3)).float()
    opt = vogn.KalmanNaturalGradient(model, ess=100.0)
    with pytest.raises(ValueError, match="KalmanNaturalGradient sets ess itself"):
        vogn.temperature_search(opt, model, Categorical(), loader(), held_out=[data(60, 7)], steps=40)


def test_groups_without_noise_have_no_temperature():
    """A Bayesian head on a deterministic body."""
    model = fill(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))).float()
    body = [{"params": list(model[0].parameters()), "variational": False, "ess": None}]
    opt = vogn.VOGN(model, lr=0.1, ess=100.0, weight_decay=1e-2, damping=1e-2, groups=body)
    found = vogn.temperature_search(opt, model, Categorical(), loader(), held_out=[data(60, 7)], steps=40)
    assert found.factor > 0 and len(found.trials) >= 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"held_out": None}, "held_out=None: training losses always prefer less noise"),
        ({"further": [loader()]}, r"further\[0\] is no pair of a loader and held-out batches"),
    ],
)
def test_what_it_would_notice_late_is_refused_at_once(options, message):
    model, opt = optimizer()
    with pytest.raises(ValueError, match=message):
        vogn.temperature_search(opt, model, Categorical(), None, **{"held_out": [data(60, 7)]} | options)


def test_held_out_examples_that_are_not_finite_are_named():
    model, opt = optimizer()
    x, y = data(60, 7)
    x[3, 1] = torch.nan
    with pytest.raises(ValueError, match="held-out batch 2 has inputs that are NaN or infinite"):
        vogn.temperature_search(opt, model, Categorical(), loader(), held_out=[data(60, 8), (x, y)], steps=40)
