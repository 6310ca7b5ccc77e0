"""Numbers that are not finite: refused by name, nothing they touch is written, and training goes on."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn import KFAC, METHODS
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.likelihoods import Categorical, Gaussian
from vogn.optim import NaturalGradient
from vogn.optim.functional import check_finite
from vogn.structures import Diagonal

ALL = sorted(METHODS)
MODES = [True, False]


def poisoned(kind, model, x, y):
    """Functions that compute a loss from which no step may be taken."""
    if kind == "NaN in one input":
        x = x.clone()
        x[2, 1] = math.nan
        return lambda: Categorical()(model(x), y)
    if kind == "infinite input":
        x = x.clone()
        x[2, 1] = math.inf
        # through tanh an infinite input is a finite activation: only the first layer's evidence is infinite
        return lambda: Categorical()(model(x), y)
    if kind == "infinite loss":
        return lambda: Categorical()(model(x), y) * math.inf
    assert kind == "NaN in one weight of the loss terms"
    weight = torch.ones(8, dtype=x.dtype)
    weight[1] = math.nan
    # the likelihood is heard as it is, the user's own weighting of the terms is not finite
    return lambda: Categorical()(model(x), y) + 0.0 * (F.cross_entropy(model(x), y, reduction="none") * weight).sum()


KINDS = ["NaN in one input", "infinite input", "infinite loss", "NaN in one weight of the loss terms"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_a_refused_step_leaves_weights_curvature_and_momentum_bit_for_bit(tools, method, variational, kind):
    model, opt = tools.trained(method, 2, variational=variational)
    before = tools.everything(opt, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two calls of a network per loss
        tools.backward(opt, poisoned(kind, model, *tools.batch(seed=2)))
    with pytest.raises(NonFiniteStatisticsError, match="block '.*': the .* holds NaN or infinity; nothing was updated"):
        opt.step()
    tools.assert_same(before, tools.everything(opt, model))
    assert opt.diagnostics()["refused_share"] == pytest.approx(1 / 3)
    tools.train(opt, model, 2, start=3)
    tools.assert_finite(opt, model)


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_a_target_that_is_not_a_number_is_refused_by_the_likelihood_and_leaves_no_trace(tools, method, variational):
    model, opt = tools.trained(method, 2, variational=variational)
    before, (x, _), targets = tools.everything(opt, model), tools.batch(), tools.normal(8, 3)
    targets[3, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 24 targets are NaN or infinite; exclude them with mask="):
        tools.backward(opt, lambda: Gaussian(noise=1.0)(model(x), targets))
    tools.assert_same(before, tools.everything(opt, model))


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_a_first_step_that_is_refused_leaves_a_fresh_optimizer(tools, method, variational):
    """The curvature of the first batch is not taken from it either."""
    model = tools.network()
    opt = tools.build(method, model, variational=variational)
    tools.backward(opt, poisoned("NaN in one input", model, *tools.batch(seed=2)))
    with pytest.raises(NonFiniteStatisticsError):
        opt.step()
    other = tools.network()
    fresh = tools.build(method, other, variational=variational)
    tools.train(opt, model, 2)
    tools.train(fresh, other, 2)
    tools.assert_same(tools.everything(fresh, other), tools.everything(opt, model))


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_a_step_that_a_gradient_scaler_skips_leaves_no_trace(tools, method, variational):
    """Infinite gradients, no step(), the next zero_grad: the run equals one that never saw this batch."""
    runs = []
    for skipped in (False, True):
        model = tools.network(dtype=torch.float32)
        opt = tools.build(method, model, variational=variational)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        opt.grad_scaler = scaler
        for step in range(4):
            if step == 2 and not skipped:
                continue
            x, y = tools.batch(seed=step)
            x = x.float() * (math.inf if step == 2 else 1.0)
            opt.zero_grad()
            with opt.sampled_params():
                scaler.scale(Categorical()(model(x), y)).backward()
            scaler.step(opt)
            scaler.update(4.0)
        runs.append(tools.everything(opt, model))
    tools.assert_same(*runs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)  # one pass in C, or structure and chain
@pytest.mark.parametrize("negative", ["clamp", "abs", "retract"])
def test_negative_evidence_without_bound_is_refused_whatever_becomes_of_negative_evidence(negative, dtype):
    model = nn.Linear(3, 2).to(dtype)
    options = {"ess": 10.0, "weight_decay": 1.0, "initial_curvature": 1e3, "lr": 1e-30}
    opt = NaturalGradient(model, Diagonal(negative=negative), "price", **options)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with opt.sampled_params():
        Categorical()(model(torch.ones(4, 3, dtype=dtype)), torch.zeros(4, dtype=torch.int64)).backward()
        for parameter, mean in zip(model.parameters(), before, strict=True):
            parameter.grad.copy_((mean - parameter).sign() * (torch.finfo(dtype).max / 2))
    with pytest.raises(NonFiniteStatisticsError, match="block 'weight': the .* holds NaN or infinity"):
        opt.step()
    assert all(torch.equal(new, old) for new, old in zip(model.parameters(), before, strict=True))


class Overflow(Categorical):
    """Finite scores and Hessians whose squares overflow float32."""

    def hessian_sqrt(self, outputs):
        return super().hessian_sqrt(outputs) * 1e25

    def score(self, outputs, targets):
        return super().score(outputs, targets) * 1e25


@pytest.mark.parametrize("method", ["kfac", "ekfac", "von", "vogn"])
def test_evidence_that_overflows_is_refused_by_name(tools, method):
    model = tools.network(dtype=torch.float32)
    opt = tools.build(method, model, **({"fisher": "ggn"} if method == "vogn" else {}))
    x, y = tools.batch()
    inputs = x.float()
    tools.backward(opt, lambda: Categorical()(model(inputs), y))
    opt.step()
    before = tools.everything(opt, model)
    tools.backward(opt, lambda: Overflow()(model(inputs), y))
    with pytest.raises(NonFiniteStatisticsError, match="block '0.weight': the curvature statistic"):
        opt.step()
    tools.assert_same(before, tools.everything(opt, model))


@pytest.mark.parametrize("method", ["ivon", "evon"])
def test_a_curvature_that_overflows_in_the_update_is_refused_by_name(tools, method):
    """Finite gradients whose squares are not: the retraction squares them, and the contractions of EVON's basis."""
    what = {"ivon": "updated curvature 'c'", "evon": "curvature statistic 'right'"}[method]
    model = tools.network(dtype=torch.float32)
    opt = tools.build(method, model)
    x, y = tools.batch()
    target = tools.normal(8, 3).float() * 1e22

    def loss():
        return (model(x.float()) * target).sum()

    tools.backward(opt, lambda: Categorical()(model(x.float()), y))
    opt.step()
    before = tools.everything(opt, model)
    tools.backward(opt, loss)
    with pytest.raises(NonFiniteStatisticsError, match=f"block '.*': the {what} holds NaN or infinity"):
        opt.step()
    tools.assert_same(before, tools.everything(opt, model))


def refused_rate(tools, method, variational, lr, message):
    """One step at this learning rate is refused; the run goes on afterwards."""
    model = tools.network(dtype=torch.float32)
    opt = tools.build(method, model, variational=variational, weight_decay=1e-6, damping=1e-6)
    usual = opt.param_groups[0]["lr"]

    def step(seed, lr=usual):
        x, y = tools.batch(seed=seed)
        opt.param_groups[0]["lr"] = lr
        tools.backward(opt, lambda: Categorical()(model(x.float()), y))
        opt.step()

    for seed in range(3):
        step(seed)
    before = tools.everything(opt, model)
    with pytest.raises(NonFiniteStatisticsError, match=f"block '.*': the {message}"):
        step(3, lr)
    tools.assert_same(before, tools.everything(opt, model))
    step(3)
    tools.assert_finite(opt, model)


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_a_learning_rate_beyond_the_range_of_the_numbers_is_refused_by_name(tools, method, variational):
    refused_rate(tools, method, variational, 1e200, r"learning rate 1e\+200 is beyond the range of torch.float32")


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ["vogn", "slang"])
def test_a_learning_rate_that_overflows_the_weights_is_refused_by_name(tools, method, variational):
    refused_rate(tools, method, variational, 3e38, "updated weight holds NaN or infinity")


def test_a_singular_curvature_is_an_error_of_the_step_that_names_the_block_and_changes_nothing(tools):
    """No shift at all and an input that is always zero."""
    model = tools.fill(nn.Sequential(nn.Linear(3, 3, bias=False)).double())
    opt = KFAC(model, weight_decay=0.0, damping=0.0, variational=False, factored=False, refresh_every=1)
    x, y = tools.batch()
    x[:, 1] = 0.0
    tools.backward(opt, lambda: Categorical()(model(x), y))
    before = tools.weights(model)
    with pytest.raises(NotPositiveDefiniteError, match="block '0.weight': an eigenvalue .* set weight_decay, damping"):
        opt.step()
    assert torch.equal(before["0.weight"], tools.weights(model)["0.weight"])
    assert all(group["steps_done"] == 0 for group in opt.param_groups)


def test_finite_numbers_with_an_infinite_sum_are_finite():
    """And numbers of different types are checked together."""
    huge = torch.full((4,), 3e38)
    check_finite([("a", "gradient", huge), ("b", "gradient", torch.zeros(2, dtype=torch.float64))])
    check_finite([])
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteStatisticsError, match="block 'b': the gradient"):
            check_finite([("a", "mean", huge), ("b", "gradient", torch.tensor([1.0, bad], dtype=torch.float64))])
