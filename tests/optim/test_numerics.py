"""Bad numbers: they are refused by name, nothing they touch is written, and training goes on."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn import KFAC, METHODS, SLANG, NaturalGradient, VAdam
from vogn.errors import FactorisationError, NonFiniteStatisticsError, NotPositiveDefiniteError, VognError
from vogn.likelihoods import Categorical, Gaussian
from vogn.optim.evidence import TOLERATED_FAILURES
from vogn.optim.functional import check_finite
from vogn.structures import Kronecker

ALL = sorted(METHODS)
MODES = [True, False]


def tensors(nested):
    """All tensors of a nested container, with the path to each."""
    if isinstance(nested, torch.Tensor):
        return {(): nested}
    items = nested.items() if isinstance(nested, dict) else enumerate(nested) if isinstance(nested, list) else ()
    return {(key, *path): leaf for key, value in items for path, leaf in tensors(value).items()}


def everything(opt, model):
    """Weights, curvature, momentum, counters."""
    return copy.deepcopy({"model": model.state_dict(), "opt": opt.state_dict()})


def assert_same(a, b):
    left, right = tensors(a), tensors(b)
    assert left.keys() == right.keys()
    for path, leaf in left.items():
        assert torch.equal(leaf, right[path]), path
    assert [g["steps_done"] for g in a["opt"]["param_groups"]] == [g["steps_done"] for g in b["opt"]["param_groups"]]


def assert_finite(opt, model):
    for path, leaf in tensors(everything(opt, model)).items():
        assert bool(leaf.isfinite().all()), path


def backward(opt, loss):
    opt.zero_grad()
    with opt.sampled_params():
        loss().backward()


# ---------------------------------------------------------------------- numbers that are not finite


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
    model = tools.network()
    opt = tools.build(method, model, variational=variational)
    tools.train(opt, model, 2)
    before = everything(opt, model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two calls of a network per loss
        backward(opt, poisoned(kind, model, *tools.batch(seed=2)))
    with pytest.raises(NonFiniteStatisticsError, match="block '.*': the .* holds NaN or infinity; nothing was updated"):
        opt.step()
    assert_same(before, everything(opt, model))
    assert opt.diagnostics()["refused_share"] == pytest.approx(1 / 3)
    tools.train(opt, model, 2, start=3)
    assert_finite(opt, model)


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_a_target_that_is_not_a_number_is_refused_by_the_likelihood_and_leaves_no_trace(tools, method, variational):
    model = tools.network()
    opt = tools.build(method, model, variational=variational)
    tools.train(opt, model, 2)
    before, (x, _), targets = everything(opt, model), tools.batch(), tools.normal(8, 3)
    targets[3, 0] = math.nan
    with pytest.raises(ValueError, match="1 of 24 targets are NaN or infinite; exclude them with mask="):
        backward(opt, lambda: Gaussian(noise=1.0)(model(x), targets))
    assert_same(before, everything(opt, model))


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_a_first_step_that_is_refused_leaves_a_fresh_optimizer(tools, method, variational):
    """The curvature of the first batch is not taken from it either."""
    model = tools.network()
    opt = tools.build(method, model, variational=variational)
    backward(opt, poisoned("NaN in one input", model, *tools.batch(seed=2)))
    with pytest.raises(NonFiniteStatisticsError):
        opt.step()
    other = tools.network()
    fresh = tools.build(method, other, variational=variational)
    tools.train(opt, model, 2)
    tools.train(fresh, other, 2)
    assert_same(everything(fresh, other), everything(opt, model))


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
        runs.append(everything(opt, model))
    assert_same(*runs)


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
    backward(opt, lambda: Categorical()(model(inputs), y))
    opt.step()
    before = everything(opt, model)
    backward(opt, lambda: Overflow()(model(inputs), y))
    with pytest.raises(NonFiniteStatisticsError, match="block '0.weight': the curvature statistic"):
        opt.step()
    assert_same(before, everything(opt, model))


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

    backward(opt, lambda: Categorical()(model(x.float()), y))
    opt.step()
    before = everything(opt, model)
    backward(opt, loss)
    with pytest.raises(NonFiniteStatisticsError, match=f"block '.*': the {what} holds NaN or infinity"):
        opt.step()
    assert_same(before, everything(opt, model))


def refused_rate(tools, method, variational, lr, message):
    """One step at this learning rate is refused; the run goes on afterwards."""
    model = tools.network(dtype=torch.float32)
    opt = tools.build(method, model, variational=variational, weight_decay=1e-6, damping=1e-6)
    usual = opt.param_groups[0]["lr"]

    def step(seed, lr=usual):
        x, y = tools.batch(seed=seed)
        opt.param_groups[0]["lr"] = lr
        backward(opt, lambda: Categorical()(model(x.float()), y))
        opt.step()

    for seed in range(3):
        step(seed)
    before = everything(opt, model)
    with pytest.raises(NonFiniteStatisticsError, match=f"block '.*': the {message}"):
        step(3, lr)
    assert_same(before, everything(opt, model))
    step(3)
    assert_finite(opt, model)


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_a_learning_rate_beyond_the_range_of_the_numbers_is_refused_by_name(tools, method, variational):
    refused_rate(tools, method, variational, 1e200, r"learning rate 1e\+200 is beyond the range of torch.float32")


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ["vogn", "slang"])
def test_a_learning_rate_that_overflows_the_weights_is_refused_by_name(tools, method, variational):
    refused_rate(tools, method, variational, 3e38, "updated weight holds NaN or infinity")


# ---------------------------------------------------------------------- extreme but finite


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
            backward(opt, lambda x=x, y=y, model=model: Categorical()(model(x), y))
            opt.step()
            assert_finite(opt, model)
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
        backward(opt, lambda x=x, y=y: Gaussian(noise=1.0)(model(x), y))
        before = everything(opt, model)
        try:
            opt.step()
        except VognError as error:
            assert isinstance(error, (NonFiniteStatisticsError, NotPositiveDefiniteError))
            assert str(error).startswith("block '")
            assert_same(before, everything(opt, model))
        assert_finite(opt, model)


@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_zero_gradients_are_harmless(tools, method, variational):
    """The loss is at its minimum already: only the prior and the noise act."""
    model = tools.fill(nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 2)).double()).float()
    opt = METHODS[method].constructor(model, ess=100.0, variational=variational)
    for _ in range(3):
        backward(opt, lambda: Gaussian(noise=1.0)(0.0 * model(torch.ones(4, 3)), torch.zeros(4, 2)))
        opt.step()
        assert_finite(opt, model)


@pytest.mark.parametrize("spike", [1e6, 1e25, 1e38])
@pytest.mark.parametrize("variational", MODES)
@pytest.mark.parametrize("method", ALL)
def test_after_a_spike_of_the_learning_rate_all_is_finite_or_refused_by_name(tools, method, variational, spike):
    model = tools.network(dtype=torch.float32)
    opt = tools.build(method, model, variational=variational)
    for step in range(6):
        opt.param_groups[0]["lr"] = spike if step == 3 else 0.05
        x, y = tools.batch(seed=step)
        backward(opt, lambda x=x, y=y: Categorical()(model(x.float()), y))
        try:
            opt.step()
        except NonFiniteStatisticsError as error:
            assert str(error).startswith("block '")
        assert_finite(opt, model)


def test_a_kl_clip_bounds_the_step_at_any_learning_rate(tools):
    """lr^2 alone overflows: the clipped step is that of a small rate all the same."""
    results = []
    for lr in (1e4, 1e30):
        model = tools.network(dtype=torch.float32)
        opt = tools.build("kfac", model, variational=False, lr=lr, kl_clip=1e-2, momentum=0.0)
        x, y = tools.batch()
        backward(opt, lambda x=x, y=y, model=model: Categorical()(model(x.float()), y))
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
    assert_finite(opt, model)


# ---------------------------------------------------------------------- failing factorisations


class Flaky:
    """Makes ``torch.linalg.eigh`` fail while ``failing``."""

    def __init__(self, monkeypatch):
        self.failing, self.real = False, torch.linalg.eigh
        monkeypatch.setattr(torch.linalg, "eigh", self)

    def __call__(self, matrix):
        if self.failing:
            raise torch.linalg.LinAlgError("linalg.eigh: did not converge")
        return self.real(matrix)


FACTORISED = ["kfac", "ekfac", "evon", "slang"]


def bad_steps(tools, flaky, opt, model, count, *, start):
    flaky.failing = True
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(start, start + count):
            x, y = tools.batch(seed=step)
            # without noise: SLANG's own draws need the decomposition too
            for group in opt.param_groups:
                group["variational"] = False
            backward(opt, lambda x=x, y=y: Categorical()(model(x), y))
            opt.step()
    flaky.failing = False
    return [str(w.message) for w in caught]


@pytest.mark.parametrize("method", FACTORISED)
def test_failed_factorisations_keep_the_last_good_factors_count_and_warn_once_per_block(tools, monkeypatch, method):
    flaky = Flaky(monkeypatch)
    model = tools.square_network() if method == "evon" else tools.network()
    opt = tools.build(method, model, refresh_every=1)
    tools.train(opt, model, 2)
    blocks = [block.name for block in opt._build()[0].blocks]
    factors = {"kfac": ("QA", "QS", "x", "y"), "ekfac": ("QA", "QS"), "evon": ("QA", "QS"), "slang": ("U", "d")}[method]

    def used():
        # from the state dictionary, so that the test does not depend on how states are kept
        states = [entry["curvature"] for entry in opt.state_dict()["state"].values() if "curvature" in entry]
        return [state[key].clone() for state in states for key in factors]

    before, weights = used(), tools.weights(model)
    messages = bad_steps(tools, flaky, opt, model, TOLERATED_FAILURES, start=2)
    assert all(torch.equal(a, b) for a, b in zip(before, used(), strict=True))
    assert not all(torch.equal(weights[n], w) for n, w in tools.weights(model).items()), "training goes on"
    for block in blocks:
        assert sum(f"block {block!r}" in m and "last good factors are kept" in m for m in messages) == 1
    numbers = opt.diagnostics(per_block=True)
    assert numbers["kept_factors"] == TOLERATED_FAILURES * len(blocks)
    assert all(numbers[f"block/{block}/kept_factors"] == TOLERATED_FAILURES for block in blocks)

    state = everything(opt, model)
    with pytest.raises(NotPositiveDefiniteError, match=f"block '{blocks[0]}': .*{TOLERATED_FAILURES} factorisations"):
        bad_steps(tools, flaky, opt, model, 1, start=8)
    flaky.failing = False
    for group, saved in zip(opt.param_groups, state["opt"]["param_groups"], strict=True):
        group["variational"] = saved["variational"]
    assert_same(state, everything(opt, model))
    # a success forgives the failures in a row, not their number
    tools.train(opt, model, 1, start=9)
    assert not all(torch.equal(a, b) for a, b in zip(before, used(), strict=True))
    assert bad_steps(tools, flaky, opt, model, TOLERATED_FAILURES, start=10) == []
    assert opt.diagnostics()["kept_factors"] == 2 * TOLERATED_FAILURES * len(blocks)


@pytest.mark.parametrize("method", FACTORISED)
def test_the_counts_of_kept_factors_are_in_the_checkpoint(tools, monkeypatch, method):
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = tools.build(method, model, refresh_every=1)
    tools.train(opt, model, 2)
    bad_steps(tools, flaky, opt, model, TOLERATED_FAILURES, start=2)
    other = tools.network()
    resumed = tools.build(method, other, refresh_every=1)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(opt.state_dict()))
    assert resumed.diagnostics()["kept_factors"] == opt.diagnostics()["kept_factors"] > 0
    with pytest.raises(NotPositiveDefiniteError, match="in a row have failed before"):
        bad_steps(tools, flaky, resumed, other, 1, start=8)


@pytest.mark.parametrize("method", ["kfac", "ekfac", "slang"])
def test_without_an_earlier_factor_a_failure_is_an_error_that_names_the_block(tools, monkeypatch, method):
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = tools.build(method, model)
    with pytest.raises(NotPositiveDefiniteError, match="block '0.weight': .* has no earlier factors to keep"):
        bad_steps(tools, flaky, opt, model, 1, start=0)
    flaky.failing = False
    tools.train(opt, model, 2)
    assert_finite(opt, model)


def test_a_start_of_the_curvature_counts_as_an_earlier_factor(tools, monkeypatch):
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = tools.build("kfac", model, initial_curvature=1.0)
    bad_steps(tools, flaky, opt, model, 1, start=0)
    assert opt.diagnostics()["kept_factors"] == 2


def test_a_third_partys_cholesky_failure_in_refresh_is_tolerated_too(tools):
    class Fails(Kronecker):
        bad = False

        def refresh(self, state):
            if Fails.bad:
                raise NotPositiveDefiniteError("no")
            return super().refresh(state)

    model = tools.network()
    opt = NaturalGradient(model, Fails(), "empirical", lr=0.05, ess=10.0, weight_decay=0.1)
    tools.train(opt, model, 1)
    Fails.bad = True
    with pytest.warns(UserWarning, match="block '.*': no. Its last good factors are kept"):
        tools.train(opt, model, 1, start=1)


def test_a_refused_update_of_the_evidence_does_not_count_as_an_observation(tools, monkeypatch):
    """SLANG decomposes in the update itself: the batch is dropped, the curvature stays."""
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = tools.build("slang", model)
    tools.train(opt, model, 2)
    bad_steps(tools, flaky, opt, model, 2, start=2)
    assert opt.diagnostics()["observations"] == 2 and opt.diagnostics()["steps"] == 4


def test_errors_of_the_sampler_name_the_block(tools, monkeypatch):
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = SLANG(model, ess=100.0)
    tools.train(opt, model, 1)
    mean = tools.weights(model)
    flaky.failing = True
    with pytest.raises(FactorisationError, match="block '0.weight': the eigendecomp"), opt.sampled_params():
        pass
    assert all(torch.equal(mean[name], weight) for name, weight in tools.weights(model).items())


def test_a_singular_curvature_is_an_error_of_the_step_that_names_the_block_and_changes_nothing(tools):
    """No shift at all and an input that is always zero."""
    model = tools.fill(nn.Sequential(nn.Linear(3, 3, bias=False)).double())
    opt = KFAC(model, weight_decay=0.0, damping=0.0, variational=False, factored=False, refresh_every=1)
    x, y = tools.batch()
    x[:, 1] = 0.0
    backward(opt, lambda: Categorical()(model(x), y))
    before = tools.weights(model)
    with pytest.raises(NotPositiveDefiniteError, match="block '0.weight': an eigenvalue .* set weight_decay, damping"):
        opt.step()
    assert torch.equal(before["0.weight"], tools.weights(model)["0.weight"])
    assert all(group["steps_done"] == 0 for group in opt.param_groups)


def test_errors_of_the_posterior_name_the_block(tools, monkeypatch):
    flaky = Flaky(monkeypatch)
    model = tools.network()
    opt = SLANG(model, ess=100.0)
    tools.train(opt, model, 1)
    posterior = opt.posterior()
    flaky.failing = True
    with pytest.raises(FactorisationError, match="block '0.weight': the eigendecomposition"):
        posterior.sample(1)


def test_finite_numbers_with_an_infinite_sum_are_finite():
    """And numbers of different types are checked together."""
    huge = torch.full((4,), 3e38)
    check_finite([("a", "gradient", huge), ("b", "gradient", torch.zeros(2, dtype=torch.float64))])
    check_finite([])
    for bad in (math.nan, math.inf):
        with pytest.raises(NonFiniteStatisticsError, match="block 'b': the gradient"):
            check_finite([("a", "mean", huge), ("b", "gradient", torch.tensor([1.0, bad], dtype=torch.float64))])
