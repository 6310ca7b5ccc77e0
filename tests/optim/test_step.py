"""The step: closures, missing evidence, bad numbers, parameters that take no part."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn import EVON, KFAC, METHODS, VOGN, NaturalGradient
from vogn.errors import MissingCurvatureError, NonFiniteStatisticsError, UnsupportedObservationError
from vogn.likelihoods import Categorical, Gaussian
from vogn.structures import Diagonal

ALL = sorted(METHODS)
STATISTICS = {name: METHODS[name].build(nn.Linear(2, 2), variational=False).statistics for name in ALL}
NEEDS_CONTEXT = [name for name in ALL if not all("step" in statistic.WHEN for statistic in STATISTICS[name])]
READS_PAIRS = [name for name in ALL if any(statistic.NEEDS_PAIRS for statistic in STATISTICS[name])]
NEEDS_LIKELIHOOD = ["kfac", "ekfac", "von"]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def snapshot(tools, opt, model):
    state = {k: {n: t.clone() for n, t in s.items()} for k, s in tools.curvature(opt).items()}
    memory = [{n: t.clone() for n, t in s["memory"].items()} for s in opt.state.values() if "memory" in s]
    return tools.weights(model), state, memory, [group["steps_done"] for group in opt.param_groups]


def assert_unchanged(before, after):
    assert same(before[0], after[0]) and before[3] == after[3]
    assert all(same(before[1][k], after[1][k]) for k in before[1])
    assert all(same(a, b) for a, b in zip(before[2], after[2], strict=True))


# ---------------------------------------------------------------------- closures


@pytest.mark.parametrize("method", ALL)
def test_a_closure_with_three_samples_is_the_explicit_loop(tools, method):
    runs = []
    for closed in (False, True):
        model = tools.network()
        opt = tools.build(method, model, mc_samples=3)
        for step in range(3):
            x, y = tools.batch(seed=step)

            def closure(model=model, opt=opt, x=x, y=y):
                opt.zero_grad()
                loss = Categorical()(model(x), y)
                loss.backward()
                return loss

            if closed:
                loss = opt.step(closure)
                assert loss.ndim == 0 and loss.requires_grad
            else:
                opt.zero_grad()
                for _ in range(3):
                    with opt.sampled_params():
                        Categorical()(model(x), y).backward()
                assert opt.step() is None
        runs.append(tools.weights(model))
    assert same(*runs)


def test_the_closure_is_called_once_per_sample_at_its_own_weights(tools):
    model = tools.network()
    opt = tools.build("vogn", model, mc_samples=3)
    tools.train(opt, model, 1, contexts=3)
    mean, seen = tools.weights(model)["0.weight"], []
    x, y = tools.batch()

    def closure():
        opt.zero_grad()
        seen.append(model[0].weight.detach().clone())
        loss = Categorical()(model(x), y)
        loss.backward()
        return loss

    opt.step(closure)
    assert len(seen) == 3 and all(not torch.equal(w, mean) for w in seen) and not torch.equal(seen[0], seen[1])


def test_a_closure_that_raises_restores_the_mean(tools):
    model = tools.network()
    opt = tools.build("vogn", model)
    tools.train(opt, model, 1)
    before = snapshot(tools, opt, model)
    with pytest.raises(ZeroDivisionError):
        opt.step(lambda: 1 / 0)
    assert_unchanged(before, snapshot(tools, opt, model))
    tools.train(opt, model, 1)


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("contexts", [1, 3])
def test_a_count_of_contexts_that_is_no_multiple_of_mc_samples_raises(tools, method, contexts):
    model = tools.network()
    opt = tools.build(method, model, mc_samples=2)
    with pytest.raises(RuntimeError, match=rf"{contexts} sampled contexts since the last step .* mc_samples=2"):
        tools.train(opt, model, 1, contexts=contexts)
    assert same(tools.weights(model), tools.weights(tools.network()))


# ---------------------------------------------------------------------- missing evidence


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("method", NEEDS_CONTEXT)
def test_a_step_that_never_saw_curvature_raises_with_the_remedy(tools, method, variational):
    model = tools.network()
    opt = tools.build(method, model, variational=variational)
    x, y = tools.batch()
    Categorical()(model(x), y).backward()
    with pytest.raises(MissingCurvatureError, match=r"never been observed: run forward and backward inside `with opt"):
        opt.step()
    assert same(tools.weights(model), tools.weights(tools.network()))


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("method", NEEDS_LIKELIHOOD)
def test_a_plain_loss_never_stands_in_for_a_likelihood(tools, method, variational):
    """Sampled labels and the GGN do not fall back to the empirical Fisher."""
    model = tools.network()
    opt = tools.build(method, model, variational=variational)
    x, y = tools.batch()
    with opt.sampled_params():
        F.cross_entropy(model(x), y).backward()
    with pytest.raises(MissingCurvatureError, match=r"vogn.likelihoods \(or call opt.observe\(outputs, likelihood\)\)"):
        opt.step()


@pytest.mark.parametrize("method", ["ivon", "evon"])
def test_the_twin_of_price_needs_a_likelihood_too(tools, method):
    """EVON's gradient row alone only turns the basis; it must not pass as curvature."""
    model = tools.network()
    opt = tools.build(method, model, variational=False)
    x, y = tools.batch()
    with opt.sampled_params():
        F.cross_entropy(model(x), y).backward()
    with pytest.raises(MissingCurvatureError, match="vogn.likelihoods"):
        opt.step()


@pytest.mark.parametrize("method", NEEDS_CONTEXT)
def test_later_steps_without_evidence_warn_once_and_use_the_old_curvature(tools, method):
    model = tools.network()
    opt = tools.build(method, model, refresh_every=1000, observe_every=1)
    tools.train(opt, model, 1)
    before, x, y = tools.curvature(opt), *tools.batch(seed=3)
    for expected in (1, 0):
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opt.step()
        assert len([w for w in caught if "observed no curvature" in str(w.message)]) == expected
    after = tools.curvature(opt)
    assert all(same(before[k], after[k]) for k in before)


def test_a_layer_that_the_statistic_cannot_see_raises_by_name(tools):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(F.linear(x, self.inner.weight, self.inner.bias))  # never calls inner.forward

    model = tools.fill(Functional().double())
    opt = VOGN(model, ess=10.0)
    with pytest.raises(
        MissingCurvatureError, match=r"block 'inner.weight' has a gradient .* without calling its forward"
    ):
        tools.train(opt, model, 1)
    assert same(tools.weights(model), tools.weights(tools.fill(Functional().double())))


def test_an_initial_curvature_lets_an_unseen_layer_move_and_warns(tools):
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(F.linear(x, self.inner.weight, self.inner.bias))

    model = tools.fill(Functional().double())
    opt = VOGN(model, ess=10.0, initial_curvature=1.0)
    with pytest.warns(UserWarning, match="block 'inner.weight' keeps its initial curvature"):
        tools.train(opt, model, 1)
    assert bool((tools.curvature(opt)["inner.weight"]["c"] == 1.0).all())


# ---------------------------------------------------------------------- harmless steps


@pytest.mark.parametrize("method", ALL)
def test_a_step_without_gradients_changes_nothing(tools, method):
    model = tools.network()
    opt = tools.build(method, model)
    opt.step()
    assert same(tools.weights(model), tools.weights(tools.network())) and opt.param_groups[0]["steps_done"] == 0
    tools.train(opt, model, 2)
    opt.zero_grad()
    before = snapshot(tools, opt, model)
    opt.step()
    assert_unchanged(before, snapshot(tools, opt, model))


@pytest.mark.parametrize("method", ALL)
def test_a_first_step_on_zero_gradients_is_harmless(tools, method):
    """How torch.distributed.checkpoint makes an optimizer create its state: zero gradients, lr = 0."""
    model = tools.network()
    opt = tools.build(method, model)
    for group in opt.param_groups:
        group["lr"] = 0.0
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    assert same(tools.weights(model), tools.weights(tools.network()))
    assert all(bool(leaf.isfinite().all()) for state in tools.curvature(opt).values() for leaf in state.values())
    assert [row["parameter"] for row in opt.coverage()] == list(dict(model.named_parameters()))
    assert len(opt.state) == len(opt.coverage())


@pytest.mark.parametrize("method", ALL)
def test_a_context_without_backward_does_not_upset_the_count_of_samples(tools, method):
    model = tools.network()
    opt = tools.build(method, model, mc_samples=2)
    with opt.sampled_params():
        pass
    opt.step()
    tools.train(opt, model, 1, contexts=2)


@pytest.mark.parametrize("method", ALL)
def test_a_parameter_without_gradient_is_untouched(tools, method):
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x):
            return self.used(x)

    model = tools.fill(Branches().double())
    opt = tools.build(method, model)
    before = tools.weights(model)
    tools.train(opt, model, 3)
    after = tools.weights(model)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("unused"), name


def test_observe_every_measures_on_schedule_and_steps_always(tools):
    for method in ALL:
        model = tools.network()
        opt = tools.build(method, model, observe_every=3)
        for step in range(7):
            basis = ("QA", "QS", "x", "y")
            before = {k: {n: t for n, t in s.items() if n not in basis} for k, s in tools.curvature(opt).items()}
            mean = tools.weights(model)
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                tools.train(opt, model, 1, start=step)
            after = tools.curvature(opt)
            moved = any(not same(state, {k: after[name][k] for k in state}) for name, state in before.items())
            if step and method not in ("evon", "ekfac"):  # a refresh also rewrites their spectrum
                assert moved == (step % 3 == 0), (method, step)
            assert not same(mean, tools.weights(model))


@pytest.mark.parametrize("method", ["kfac", "vogn", "ivon"])
def test_observe_every_works_with_a_summed_loss(tools, method):
    """The loss terms are counted in every step, measured or not."""
    runs = []
    for reduction in ("mean", "sum"):
        model = tools.network()
        opt = tools.build(method, model, observe_every=2, loss_reduction=reduction)
        for step in range(4):
            x, y = tools.batch(seed=step)
            opt.zero_grad()
            with opt.sampled_params():
                loss = Categorical()(model(x), y)
                (loss * len(x) if reduction == "sum" else loss).backward()
            opt.step()
        runs.append(tools.weights(model))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-10, atol=1e-12)


def test_the_gradient_row_is_no_evidence_where_the_probe_is_missing(tools):
    """EVON between two observations: the spectrum stays, only the refreshed basis carries it along."""
    model = tools.network()
    opt = EVON(model, ess=100.0, observe_every=4, refresh_every=1000, curvature_decay=0.5)
    tools.train(opt, model, 1)
    before = tools.curvature(opt)
    tools.train(opt, model, 2, start=1)
    after = tools.curvature(opt)
    assert all(torch.equal(before[k]["s"], after[k]["s"]) for k in before)


# ---------------------------------------------------------------------- bad numbers


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("method", ALL)
def test_a_gradient_that_is_not_finite_raises_and_changes_nothing(tools, method, bad):
    model = tools.network()
    opt = tools.build(method, model)
    tools.train(opt, model, 2)
    opt.zero_grad()
    x, y = tools.batch(seed=2)
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    model[2].weight.grad[0, 0] = bad
    before = snapshot(tools, opt, model)
    block = "0.weight" if opt.partition == "model" else "2.weight"  # a joint block has its first name
    with pytest.raises(NonFiniteStatisticsError, match=rf"block '{block}': the .* holds NaN or infinity; nothing was"):
        opt.step()
    assert_unchanged(before, snapshot(tools, opt, model))
    tools.train(opt, model, 1, start=2)  # and the run can go on
    assert all(bool(p.isfinite().all()) for p in model.parameters())


# SNGD measures nothing but inputs, FNGD only what the user's backward passes
@pytest.mark.parametrize("method", sorted(set(READS_PAIRS) - {"sngd", "fngd"}))
def test_a_statistic_that_is_not_finite_raises_and_changes_nothing(tools, method):
    """A NaN in the last layer's own pass only: the gradients are fine."""

    class Sick(Categorical):  # typed final, but a test may
        def hessian_sqrt(self, outputs):
            return super().hessian_sqrt(outputs) * math.nan

        def score(self, outputs, targets):
            return super().score(outputs, targets) * math.nan

    model = tools.network()
    measured = tools.build(method, tools.network()).statistics
    own_pass = any(statistic.NEEDS_LIKELIHOOD for statistic in measured)
    opt = tools.build(method, model, observe_every=1, **({} if own_pass else {"fisher": "ggn"}))
    tools.train(opt, model, 2)
    opt.zero_grad()
    x, y = tools.batch(seed=2)
    with opt.sampled_params():
        Sick()(model(x), y).backward()
    before = snapshot(tools, opt, model)
    with pytest.raises(NonFiniteStatisticsError, match="the curvature statistic '.*' holds NaN or infinity"):
        opt.step()
    assert_unchanged(before, snapshot(tools, opt, model))


def test_an_indefinite_curvature_raises_before_any_weight_moves(tools):
    """Hutchinson on a diagonal whose policy is to raise."""
    from vogn.errors import NotPositiveDefiniteError

    model = tools.network()
    opt = NaturalGradient(model, Diagonal(), "hutchinson", lr=0.1, weight_decay=1e-6, variational=False)
    with pytest.raises(NotPositiveDefiniteError, match="negative='retract'"):
        tools.train(opt, model, 20)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_a_sparse_gradient_is_refused_by_name(tools):
    table = nn.Parameter(tools.normal(5, 2))
    opt = METHODS["vadam"].constructor([table], variational=False)
    with opt.sampled_params():
        F.embedding(torch.tensor([1, 2]), table, sparse=True).sum().backward()
    with pytest.raises(UnsupportedObservationError, match="parameter 'param0' has a sparse gradient; use a dense one"):
        opt.step()


# ---------------------------------------------------------------------- what the user passes


@pytest.mark.parametrize("method", ["vogn", "kfac", "ekfac", "slang", "von"])
def test_bare_parameters_are_refused_with_the_right_call(tools, method):
    model, name = tools.network(), METHODS[method].constructor.__name__
    with pytest.raises(TypeError, match=rf"{name} reads layer inputs .*: pass the model, {name}\(model, ...\)"):
        METHODS[method].constructor(model.parameters(), ess=10.0)


@pytest.mark.parametrize("method", ALL)
def test_a_missing_sample_size_is_refused_with_the_remedy(tools, method):
    with pytest.raises(
        ValueError, match=r"needs the effective sample size: pass ess=len\(train_set\), or variational=F"
    ):
        METHODS[method].constructor(tools.network())
    METHODS[method].constructor(tools.network(), variational=False)


@pytest.mark.parametrize("method", [name for name in ALL if not METHODS[name].sets_groups])
def test_switching_to_variational_without_a_sample_size_raises_at_the_context(tools, method):
    model = tools.network()
    opt = tools.build(method, model, variational=False, ess=None)
    tools.train(opt, model, 1)
    opt.param_groups[0]["variational"] = True
    mean = tools.weights(model)
    with pytest.raises(ValueError, match="needs the effective sample size"), opt.sampled_params():
        pass
    assert same(mean, tools.weights(model))
    opt.param_groups[0]["ess"] = 100.0
    tools.train(opt, model, 1, start=1)


def test_a_posterior_needs_evidence_and_a_sample_size(tools):
    model = tools.network()
    opt = tools.build("vogn", model, ess=None, variational=False)
    with pytest.raises(MissingCurvatureError, match="block '0.weight' has no curvature yet: run forward and backward"):
        opt.posterior()
    tools.train(opt, model, 1)
    with pytest.raises(ValueError, match=r"set ess=len\(train_set\)"):
        opt.posterior()
    opt.param_groups[0]["ess"] = 100.0
    assert opt.posterior().numel == sum(p.numel() for p in model.parameters())


def test_the_posterior_remembers_the_likelihood_and_is_independent(tools):
    model = tools.network()
    opt = KFAC(model, ess=100.0)
    tools.train(opt, model, 2)
    posterior = opt.posterior()
    assert posterior.likelihood == Categorical().to_dict() and posterior.method == "KFAC"
    before = posterior.mean()
    tools.train(opt, model, 2)
    assert same(before, posterior.mean()) and not same(before, opt.posterior().mean())


def test_a_gaussian_likelihood_with_flat_outputs_works(tools):
    """Outputs (N,): one output per term."""
    model = tools.fill(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double())
    x, y = tools.normal(6, 3), tools.normal(6, seed=1)
    for method in ALL:
        opt = tools.build(method, model)
        for _ in range(2):
            opt.zero_grad()
            with opt.sampled_params():
                Gaussian(noise=0.3)(model(x), y).backward()
            opt.step()
