"""Extreme but finite numbers: training stays finite, or the step is refused by name."""

import math

import pytest
import torch
from torch import nn

from vogn import METHODS, VAdam
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError, VognError
from vogn.likelihoods import Categorical, Gaussian
from vogn.optim.steps import Prior

ALL = sorted(METHODS)
MODES = [True, False]


def extreme(kind, x, y):
    """Inputs and labels of one batch in float32."""
    x = x.float()
    scales = {"tiny": 1e-18, "denormal": 1e-40, "huge": 1e12, "zero": 0.0, "as they are": 1.0}
    if kind in scales:
        return x * scales[kind], y
    if kind == "constant":
        return torch.full_like(x, 2.0), y
    if kind == "rank one":
        return torch.arange(1.0, 9.0)[:, None] * x[:1], y
    if kind == "one example":
        return x[:1], y[:1]
    assert kind == "duplicates"
    return x[:1].expand(8, 3).contiguous(), y[:1].expand(8).contiguous()


EXTREMES = ["tiny", "denormal", "huge", "zero", "constant", "rank one", "one example", "duplicates"]


@pytest.mark.parametrize("kind", EXTREMES)
@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_extreme_inputs_in_single_precision_train_to_finite_numbers(tools, method, variational, kind):
    """With the method's own damping and weight decay, with and without a bias."""
    for bias in (True, False):
        layers = (nn.Linear(3, 4, bias=bias), nn.Tanh(), nn.Linear(4, 3, bias=bias))
        model = tools.fill(nn.Sequential(*layers).double()).float()
        start = tools.weights(model)
        opt = METHODS[method].constructor(model, ess=100.0, variational=variational, refresh_every=2)
        for step in range(4):
            x, y = extreme(kind, *tools.batch(seed=step))
            tools.backward(opt, lambda x=x, y=y, model=model: Categorical()(model(x), y))
            opt.step()
            tools.assert_finite(opt, model)
        if any(isinstance(step, Prior) for step in opt.chain):  # even where no gradient is left
            assert any(not torch.equal(start[name], after) for name, after in tools.weights(model).items())
        if variational:
            drawn = opt.posterior().sample(2)
            assert all(bool(leaf.isfinite().all()) for leaf in drawn.values())
        assert all(math.isfinite(value) for value in opt.diagnostics(per_block=True).values())


@pytest.mark.parametrize("scale", [1e12, 1e15])
@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_a_huge_regression_is_finite_or_refused_by_name(tools, method, variational, scale):
    """Inputs and targets of 1e12: what is squared twice leaves float32."""
    model = tools.network(dtype=torch.float32)
    opt = METHODS[method].constructor(model, ess=100.0, variational=variational)
    for step in range(4):
        x, y = scale * tools.batch(seed=step)[0].float(), scale * tools.normal(8, 3, seed=step).float()
        tools.backward(opt, lambda x=x, y=y: Gaussian(noise=1.0)(model(x), y))
        before = tools.everything(opt, model)
        try:
            opt.step()
        except VognError as error:
            assert isinstance(error, (NonFiniteStatisticsError, NotPositiveDefiniteError))
            assert str(error).startswith("block '")
            tools.assert_same(before, tools.everything(opt, model))
        tools.assert_finite(opt, model)


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_zero_gradients_are_harmless(tools, method, variational):
    """The loss is at its minimum already: only the prior and the noise act."""
    model = tools.fill(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()).float()
    opt = METHODS[method].constructor(model, ess=100.0, variational=variational)
    for _ in range(3):
        tools.backward(opt, lambda: Gaussian(noise=1.0)(0.0 * model(torch.ones(4, 3)), torch.zeros(4, 2)))
        opt.step()
        tools.assert_finite(opt, model)


@pytest.mark.parametrize("spike", [1e6, 1e25, 1e38])
@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_after_a_spike_of_the_learning_rate_all_is_finite_or_refused_by_name(tools, method, variational, spike):
    model = tools.network(dtype=torch.float32)
    opt, refused = tools.build(method, model, variational=variational), []
    for step in range(6):
        opt.param_groups[0]["lr"] = spike if step == 3 else 0.05
        x, y = tools.batch(seed=step)
        tools.backward(opt, lambda x=x, y=y: Categorical()(model(x.float()), y))
        try:
            opt.step()
        except NonFiniteStatisticsError as error:
            assert step >= 3 and str(error).startswith("block '")
            refused.append(step)
        tools.assert_finite(opt, model)
    assert refused == [3] or 3 not in refused, "a refused spike leaves nothing that could spoil the steps behind it"


def test_a_kl_clip_bounds_the_step_at_any_learning_rate(tools):
    """lr^2 alone overflows: the clipped step is that of a small rate all the same."""
    results = []
    for lr in (1e4, 1e30):
        model = tools.network(dtype=torch.float32)
        opt = tools.build("kfac", model, variational=False, lr=lr, kl_clip=1e-2, momentum=0.0)
        x, y = tools.batch()
        tools.backward(opt, lambda x=x, y=y, model=model: Categorical()(model(x.float()), y))
        opt.step()
        results.append(tools.weights(model))
    start = tools.network(dtype=torch.float32).state_dict()
    for name, weight in results[0].items():
        torch.testing.assert_close(weight, results[1][name], rtol=1e-5, atol=1e-6)
        assert not torch.equal(weight, start[name])


def test_adams_second_bias_correction_without_any_weight_is_none(tools):
    """curvature_decay = 1 never gives the average a weight: C stays at its start."""
    model = tools.network()
    opt = VAdam(model, ess=100.0, curvature_decay=1.0)
    tools.train(opt, model, 2)
    tools.assert_finite(opt, model)
