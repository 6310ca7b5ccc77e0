"""Sampled contexts: what is in the model inside, and that nothing is left behind outside."""

import copy
import gc
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn import METHODS, VOGN, NaturalGradient
from vogn.capture.statistics import Empirical
from vogn.errors import MissingCurvatureError
from vogn.likelihoods import Categorical
from vogn.structures import Diagonal

ALL = sorted(METHODS)


def ready(tools, method, **options):
    """A model and an optimizer that has seen evidence, so that its next context is displaced."""
    model = tools.network()
    opt = tools.build(method, model, **options)
    tools.train(opt, model, 2, contexts=options.get("mc_samples", 1))
    opt.zero_grad()
    return model, opt


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("method", ALL)
def test_the_mean_is_restored_bit_for_bit(tools, method):
    model, opt = ready(tools, method)
    mean = tools.weights(model)
    with opt.sampled_params():
        assert not any(torch.equal(p, mean[name]) for name, p in model.named_parameters())
        Categorical()(model(tools.batch()[0]), tools.batch()[1]).backward()
    assert same(tools.weights(model), mean)


@pytest.mark.parametrize("method", ALL)
def test_the_mean_is_restored_and_the_observations_are_dropped_when_the_body_raises(tools, method):
    model, opt = ready(tools, method)
    mean, x, y = tools.weights(model), *tools.batch()
    with pytest.raises(KeyboardInterrupt), opt.sampled_params():
        Categorical()(model(x), y).backward()
        raise KeyboardInterrupt
    assert same(tools.weights(model), mean)
    # the next attempt is the first one for the curvature: the run goes on as if nothing had happened
    opt.zero_grad(set_to_none=True)
    tools.train(opt, model, 2, start=2)
    other, undisturbed = ready(tools, method)
    tools.train(undisturbed, other, 2, start=2)
    assert same(tools.weights(model), tools.weights(other))


@pytest.mark.parametrize("method", ALL)
def test_what_a_failed_body_had_observed_does_not_count(tools, method):
    """Without zero_grad too: the caught context leaves no evidence, whether it failed before or after backward."""
    x, y = tools.batch(seed=9)
    outcomes = []
    for fails in (False, True):
        model, opt = ready(tools, method)
        if fails:
            with pytest.raises(ZeroDivisionError), opt.sampled_params():
                Categorical()(model(10 * x), y).backward()
                1 / 0  # noqa: B018
            for parameter in model.parameters():  # not opt.zero_grad(): that would clear the observations too
                parameter.grad = None
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
        outcomes.append((tools.weights(model), tools.curvature(opt)))
    assert same(outcomes[0][0], outcomes[1][0])
    for name, state in outcomes[0][1].items():
        assert same(state, outcomes[1][1][name])


def test_a_failed_second_sample_keeps_the_first_one(tools):
    x, y = tools.batch(seed=9)
    model, opt = ready(tools, "vogn", mc_samples=2)
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    grads = [p.grad.clone() for p in model.parameters()]
    with pytest.raises(ZeroDivisionError), opt.sampled_params():
        Categorical()(model(10 * x), y).backward()
        1 / 0  # noqa: B018
    for p, g in zip(model.parameters(), grads, strict=True):
        p.grad = g
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.step()
    other, undisturbed = ready(tools, "vogn", mc_samples=2)
    for _ in range(2):
        with undisturbed.sampled_params():
            Categorical()(other(x), y).backward()
    undisturbed.step()
    assert same(tools.weights(model), tools.weights(other))


def test_a_context_that_cannot_begin_leaves_the_mean_in_place(tools):
    class Broken(Empirical):
        broken = False

        def on_entry(self, collector):
            if self.broken:
                raise ArithmeticError("no entry")

    model, statistic = tools.network(), Broken()
    opt = NaturalGradient(model, Diagonal(), statistic, lr=0.1, ess=10.0, weight_decay=0.1)
    tools.train(opt, model, 1)
    mean, statistic.broken = tools.weights(model), True
    with pytest.raises(ArithmeticError, match="no entry"), opt.sampled_params():
        pass
    assert same(tools.weights(model), mean)
    statistic.broken = False
    tools.train(opt, model, 1, start=1)


def test_nested_contexts_raise_and_restore(tools):
    model, opt = ready(tools, "vogn")
    mean = tools.weights(model)
    with pytest.raises(RuntimeError, match="already active; contexts cannot be nested"), opt.sampled_params():  # noqa: SIM117
        with opt.sampled_params():
            pass
    assert same(tools.weights(model), mean)
    with opt.sampled_params():
        pass


@pytest.mark.parametrize("call", ["state_dict", "posterior", "load_state_dict"])
def test_reading_the_optimizer_inside_a_context_raises(tools, call):
    model, opt = ready(tools, "vogn")
    arguments = (opt.state_dict(),) if call == "load_state_dict" else ()
    with opt.sampled_params(), pytest.raises(RuntimeError, match=rf"{call}\(\) inside a sampled context"):
        getattr(opt, call)(*arguments)
    getattr(opt, call)(*arguments)


def test_sample_and_restore_are_the_context_for_trainers_without_with_blocks(tools):
    a, first = ready(tools, "vogn")
    b, second = ready(tools, "vogn")
    x, y = tools.batch(seed=5)
    with first.sampled_params():
        Categorical()(a(x), y).backward()
    second.sample_()
    Categorical()(b(x), y).backward()
    second.restore_()
    second.restore_()  # harmless
    first.step()
    second.step()
    assert same(tools.weights(a), tools.weights(b))


def test_step_restores_the_mean_first(tools):
    a, first = ready(tools, "vogn")
    b, second = ready(tools, "vogn")
    x, y = tools.batch(seed=5)
    with first.sampled_params():
        Categorical()(a(x), y).backward()
    first.step()
    with second.sampled_params():
        Categorical()(b(x), y).backward()
        second.step()
    assert same(tools.weights(a), tools.weights(b))
    with second.sampled_params():
        pass


def test_observe_outside_a_context_raises(tools):
    model, opt = ready(tools, "kfac")
    with pytest.raises(RuntimeError, match=r"observe\(\) belongs inside a sampled context.*sampled_params"):
        opt.observe(model(tools.batch()[0]), Categorical())


@pytest.mark.parametrize("method", ["kfac", "ekfac"])
def test_observe_replaces_a_likelihood_call(tools, method):
    """For models that compute their loss inside."""
    runs = []
    for explicit in (False, True):
        model = tools.network()
        opt = tools.build(method, model)
        for step in range(3):
            x, y = tools.batch(seed=step)
            opt.zero_grad()
            with opt.sampled_params():
                outputs = model(x)
                if explicit:
                    opt.observe(outputs, Categorical())
                    F.cross_entropy(outputs, y).backward()
                else:
                    Categorical()(outputs, y).backward()
            opt.step()
        runs.append(tools.weights(model))
    for name in runs[0]:
        torch.testing.assert_close(runs[0][name], runs[1][name], rtol=1e-12, atol=1e-14)


def test_a_late_backward_is_an_error_and_not_a_wrong_gradient(tools):
    """The mean is copied back in place, so autograd notices."""
    model, opt = ready(tools, "vogn")
    x, y = tools.batch()
    with opt.sampled_params():
        loss = Categorical()(model(x), y)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("method", ALL)
def test_no_context_leaves_a_hook_behind(tools, method):
    model, opt = ready(tools, method)
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())
    with pytest.raises(ZeroDivisionError), opt.sampled_params():
        1 / 0  # noqa: B018
    assert not any(m._forward_hooks or m._backward_hooks for m in model.modules())


def test_evaluation_without_grad_inside_a_context_is_ignored(tools):
    runs = []
    for evaluate in (False, True):
        model, opt = ready(tools, "kfac")
        x, y = tools.batch(seed=4)
        with opt.sampled_params():
            if evaluate:
                with torch.no_grad():
                    Categorical()(model(10 * x), y)
            Categorical()(model(x), y).backward()
            if evaluate:
                with torch.no_grad():
                    Categorical()(model(3 * x), y)
        opt.step()
        runs.append((tools.weights(model), tools.curvature(opt)))
    assert same(runs[0][0], runs[1][0])
    assert all(same(runs[0][1][k], runs[1][1][k]) for k in runs[0][1])


@pytest.mark.parametrize("method", ["vogn", "kfac", "slang"])
@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_a_copy_of_the_model_is_never_observed(tools, method, when):
    model, opt = ready(tools, method)
    x, y = tools.batch(seed=4)
    copied = copy.deepcopy(model)
    with opt.sampled_params():
        if when == "inside":
            copied = copy.deepcopy(model)
        F.cross_entropy(copied(5 * x), y).backward()
        Categorical()(model(x), y).backward()
        F.cross_entropy(copied(7 * x), y).backward()
    if when == "after":
        copied = copy.deepcopy(model)
        F.cross_entropy(copied(x), y).backward()
    opt.step()
    other, alone = ready(tools, method)
    with alone.sampled_params():
        Categorical()(other(x), y).backward()
    alone.step()
    assert same(tools.weights(model), tools.weights(other))
    a, b = tools.curvature(opt), tools.curvature(alone)
    assert all(same(a[k], b[k]) for k in a)


def test_two_optimizers_may_watch_one_model(tools):
    """Each owns one layer, given as a module of its own; both see the same pass."""
    torch.manual_seed(0)
    model = tools.network()
    opts = [tools.build("vogn", layer, variational=False) for layer in (model[0], model[2])]
    for step in range(3):
        x, y = tools.batch(seed=step)
        for opt in opts:
            opt.zero_grad()
        with opts[0].sampled_params(), opts[1].sampled_params():
            Categorical()(model(x), y).backward()
        for opt in opts:
            opt.step()
    one_model = tools.network()
    one = tools.build("vogn", one_model, variational=False)
    tools.train(one, one_model, 3)
    for name, p in tools.weights(model).items():
        torch.testing.assert_close(p, tools.weights(one_model)[name], rtol=1e-12, atol=1e-14)


def test_calls_of_the_model_leave_memory_with_their_graph(tools):
    """No reference cycle through the graph: counting collectable garbage would hide a leak until the collector runs."""
    import gc
    import weakref

    class Sentinel:
        """Lives in a graph node's metadata, hence as long as the node."""

    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 3)).double()
    for method, options in (("vogn", {}), ("kfac", {}), ("slang", {}), ("ivon", {"variational": False})):
        opt, seen = tools.build(method, model, **options), []
        gc.collect()
        gc.disable()
        try:
            for step in range(3):
                x, y = tools.batch(seed=step)
                opt.zero_grad()
                with opt.sampled_params():
                    out = model(x)
                    for node in (out.grad_fn, out.grad_fn.next_functions[1][0]):
                        node.metadata["sentinel"] = Sentinel()
                        seen.append(weakref.ref(node.metadata["sentinel"]))
                    assert seen[-1]() is not None
                    Categorical()(out, y).backward()
                opt.step()
                del out, node
            assert not any(ref() is not None for ref in seen), method
        finally:
            gc.enable()


def test_the_first_step_without_evidence_is_deterministic(tools):
    """Never a draw from the bare prior."""
    model = tools.network()
    opt = VOGN(model, ess=10.0, weight_decay=0.1)
    mean = tools.weights(model)
    with opt.sampled_params():
        assert same(tools.weights(model), mean)
    opt = VOGN(model, ess=10.0, weight_decay=0.1, initial_curvature=2.0)
    with opt.sampled_params():
        assert not same(tools.weights(model), mean)


def test_zero_grad_drops_the_observations(tools):
    x, y = tools.batch(seed=4)
    runs = []
    for twice in (False, True):
        model, opt = ready(tools, "vogn", variational=False)
        if twice:
            with opt.sampled_params():
                Categorical()(model(9 * x), y).backward()
            opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
        runs.append(tools.weights(model))
    assert same(*runs)
    model, opt = tools.network(), None
    opt = tools.build("vogn", model)
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.zero_grad()
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(MissingCurvatureError):
        opt.step()


@pytest.mark.parametrize("method", ALL)
def test_zero_grad_between_the_loss_and_backward_is_an_ordinary_loop(tools, method):
    """loss = ...; opt.zero_grad(); loss.backward(): what the context has announced belongs to gradients yet to come."""
    runs = []
    for late in (False, True):
        model = tools.network()
        opt = tools.build(method, model)
        for step in range(3):
            x, y = tools.batch(seed=step)
            if not late:
                opt.zero_grad()
            with opt.sampled_params():
                loss = Categorical()(model(x), y)
                if late:
                    opt.zero_grad()
                loss.backward()
            opt.step()
        runs.append(tools.weights(model))
    assert same(*runs)


def test_an_optimizer_that_is_deleted_with_an_open_context_is_collected():
    def make():
        model = nn.Linear(3, 3)
        opt = VOGN(model, ess=10, weight_decay=0.1)
        x = torch.randn(4, 3)
        with opt.sampled_params():
            Categorical()(model(x), x.argmax(1)).backward()
        opt.step()
        opt.sample_()
        return weakref.ref(opt)

    reference = make()
    gc.collect()
    assert reference() is None
    # what it listened to goes on without it
    likelihood, logits = Categorical(), torch.zeros(2, 3)
    assert float(likelihood(logits, torch.zeros(2, dtype=torch.long))) == pytest.approx(math.log(3))
