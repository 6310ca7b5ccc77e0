"""Frozen steps in one pass over the numbers: those of the chain, for every block, option and loop."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn

import vogn
from fngd_cases import DETERMINISTIC, NETWORKS, build, every_network, network, run, sgd_twin, weights
from tiny_models import batch, fill
from vogn import FNGD
from vogn.errors import NonFiniteStatisticsError
from vogn.kernels import kernel, native
from vogn.kernels.native.build import library
from vogn.likelihoods import Categorical
from vogn.optim import NaturalGradient
from vogn.optim.linear_pass import linear_form
from vogn.optim.steps import ClipKL, Momentum, Prior, RescaleToInitial, Reweight
from vogn.structures import SampleSpace

needs_compiler = pytest.mark.skipif(isinstance(library(), str), reason=f"no library: {library()}")


@pytest.fixture
def passes(monkeypatch):
    """Blocks are computed by the reference of the pass, which takes every dtype; what was computed."""
    taken = []

    def spy(blocks):
        taken.extend(len(block.means) for block in blocks)
        return kernel("linear_step")(blocks)

    monkeypatch.setattr("vogn.optim.linear_pass.fitting", lambda op, *tensors: spy)
    return taken


@contextmanager
def by_chain(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("vogn.optim.linear_pass.fitting", lambda op, *tensors: None)
        yield


OPTIONS = {
    "index": {},
    "mean": {"share": "mean"},
    "prior and momentum": {"weight_decay": 0.05, "momentum": 0.9},
    "mean, prior and momentum": {"share": "mean", "weight_decay": 0.05, "momentum": 0.6},
    "two contexts": {"mc_samples": 2, "momentum": 0.9},
}


def steps(opt, model, how):
    for k, order in enumerate([torch.arange(8), torch.arange(7, -1, -1), torch.arange(8), torch.arange(8)]):
        x, y = batch(8, k)
        run(opt, model, x[order], y[order], order, contexts=opt.param_groups[0]["mc_samples"], **how)


@every_network
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("how", [{}, {"parts": 2}], ids=str)
def test_a_pass_is_the_chain(make, options, how, passes, monkeypatch):
    models = make(), make()
    opts = [build(model, **({"lr": 0.1, "freeze_after": 2} | options)) for model in models]
    steps(opts[0], models[0], how)
    assert len(passes) >= 2 * 3  # two steps of at least three blocks
    with by_chain(monkeypatch):
        steps(opts[1], models[1], how)
    for name, weight in weights(models[0]).items():
        torch.testing.assert_close(weights(models[1])[name], weight, rtol=1e-12, atol=1e-13)
    states = [opt.state_dict()["state"] for opt in opts]
    for key, entry in states[0].items():
        for kind in ("curvature", "memory") if "memory" in entry else ():
            assert entry[kind].keys() == states[1][key][kind].keys()
            for name, tensor in entry[kind].items():
                torch.testing.assert_close(states[1][key][kind][name], tensor, rtol=1e-12, atol=1e-13)


def test_a_summed_loss_is_divided(passes, monkeypatch):
    x, y = batch(8)
    models = network(), network()

    def four(model):
        opt = build(model, lr=0.1, freeze_after=2, loss_reduction="sum", momentum=0.9)
        for _ in range(4):
            opt.zero_grad()
            with opt.sampled_params(torch.arange(8)):
                (Categorical()(model(x), y) * 8).backward()
            opt.step()

    four(models[0])
    assert passes
    with by_chain(monkeypatch):
        four(models[1])
    for name, weight in weights(models[0]).items():
        torch.testing.assert_close(weights(models[1])[name], weight, rtol=1e-12, atol=1e-13)


def test_coefficients_of_one_are_gradient_descent(passes):
    model, twin = network(), network()
    options = {"momentum": 0.9, "weight_decay": 0.05}
    opt, other = build(model, damping=1e14, freeze_after=1, **options), sgd_twin(twin, **options)
    for step in range(4):
        x, y = batch(8)
        run(opt, model, x, y, torch.arange(8))
        run(other, twin, x, y)
        assert bool(passes) == (step > 0)
    for name, weight in weights(model).items():
        torch.testing.assert_close(weights(twin)[name], weight, rtol=1e-10, atol=1e-11)


def test_what_momentum_is_may_change_between_steps(passes, monkeypatch):
    """Switched off, on again and started late; rates that are annealed."""
    found = []
    for way in ("pass", "chain"):
        model = network()
        opt = build(model, lr=0.1, freeze_after=1, momentum=0.0)
        for step, momentum in enumerate([0.0, 0.0, 0.9, 0.5, 0.0, 0.9]):
            opt.param_groups[0].update(momentum=momentum, lr=0.1 / (1 + step), anneal_power=0.5)
            x, y = batch(8, step)
            if way == "pass":
                run(opt, model, x, y, torch.arange(8))
            else:
                with by_chain(monkeypatch):
                    run(opt, model, x, y, torch.arange(8))
        found.append(weights(model))
    for name, weight in found[0].items():
        torch.testing.assert_close(found[1][name], weight, rtol=1e-12, atol=1e-13)
    assert passes


def test_a_block_without_all_gradients_goes_through_the_chain(passes):
    x, y = batch(8)
    model = network()
    opt = build(model, lr=0.1, freeze_after=1)
    run(opt, model, x, y, torch.arange(8))
    opt.zero_grad()
    with opt.sampled_params(torch.arange(8)):
        Categorical()(model(x), y).backward()
    model[0].bias.grad = None
    before = weights(model)
    opt.step()
    assert sorted(passes) == [1, 2]
    after = weights(model)
    assert torch.equal(after["0.bias"], before["0.bias"])
    assert not torch.equal(after["0.weight"], before["0.weight"])


def test_groups_that_are_still_measured_go_through_the_chain(passes):
    x, y = batch(8)
    model = network()
    head = lambda m: [{"params": list(m[4].parameters()), "freeze_after": 3}]  # noqa: E731
    opt = build(model, lr=0.1, freeze_after=1, share="mean", groups=head(model))
    for _ in range(4):
        run(opt, model, x, y, torch.arange(8))
    assert passes == [2, 1] * 2 + [2, 1, 2]


@pytest.mark.parametrize("name", ["0.weight", "2.weight", "4.bias"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_refused_step_changes_nothing_and_names_the_block(name, bad, passes):
    x, y = batch(8)
    model = network()
    opt = build(model, lr=0.1, freeze_after=1, momentum=0.9)
    for _ in range(2):
        run(opt, model, x, y, torch.arange(8))
    before, state = weights(model), opt.state_dict()
    opt.zero_grad()
    with opt.sampled_params(torch.arange(8)):
        Categorical()(model(x), y).backward()
    model.get_parameter(name).grad.view(-1)[1] = bad
    with pytest.raises(NonFiniteStatisticsError, match=f"block '{name[0]}.weight': the gradient holds"):
        opt.step()
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())
    for key, entry in opt.state_dict()["state"].items():
        for memory, tensor in entry.get("memory", {}).items():
            assert torch.equal(tensor, state["state"][key]["memory"][memory])
    opt.param_groups[0]["lr"] = 1e400
    opt.zero_grad()
    with opt.sampled_params(torch.arange(8)):
        Categorical()(model(x), y).backward()
    with pytest.raises(NonFiniteStatisticsError, match="learning rate"):
        opt.step()
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters())


class Halved(Prior):
    def __call__(self, updates, context):
        return [update / 2 for update in super().__call__(updates, context)]


class Doubled(Prior):
    def linear(self, memory, group):
        return 2.0, 0.0


class Told(Prior):
    def after(self, means, context):
        pass


@pytest.mark.parametrize(
    ("chain", "linear"),
    [
        ((Reweight(), Momentum()), True), ((Momentum(), Prior()), True), ((Prior(),), True), ((), True),
        ((Doubled(), Momentum(), Prior(), Prior()), True), ((Momentum(), Momentum()), False),
        ((Reweight(), Momentum(), ClipKL(1.0)), False), ((Prior(), RescaleToInitial()), False),
        ((Halved(), Momentum()), False), ((Told(),), False),
    ],
)  # fmt: skip
def test_which_chains_may_be_linear(chain, linear):
    assert (linear_form(chain) is not None) == linear


def test_linear_steps_are_composed_in_their_order():
    form = linear_form((Prior(), Doubled(), Momentum(), Doubled(), Prior()))
    assert form.factors({}, {"weight_decay": 0.5}) == ((2.0, 1.0), (2.0, 0.5))
    assert linear_form((Reweight(), Momentum())).factors({}, {"freeze_after": None}) is None


@pytest.mark.parametrize("chain", [(Reweight(), Momentum(), ClipKL(1e-3)), (Reweight(), Momentum(), Halved())])
def test_chains_with_other_steps_are_called(chain, passes):
    x, y = batch(8)
    model = network()
    opt = build(model, lr=0.1, freeze_after=1)
    opt.chain = chain
    for _ in range(2):
        run(opt, model, x, y, torch.arange(8))
    assert not passes


# ---------------------------------------------------------------------- the kernel in C


@needs_compiler
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
def test_with_kernels_training_is_that_without(make, options, monkeypatch):
    calls, table = [], vogn.kernels.TABLE["linear_step"]
    step = table["native"]
    monkeypatch.setitem(table, "native", lambda blocks: calls.append(len(blocks)) or step(blocks))
    models = make().float(), make().float()
    for model, on in zip(models, (True, False), strict=True):
        if not on:
            monkeypatch.setattr(native, "fit", lambda *tensors: False)
        opt = build(model, **({"lr": 0.1, "freeze_after": 2} | options))
        for k in range(5):
            x, y = batch(8, k, dtype=torch.float32)
            run(opt, model, x, y, torch.arange(8), contexts=opt.param_groups[0]["mc_samples"])
        assert bool(calls) == on
        calls.clear()
    for name, weight in weights(models[0]).items():
        torch.testing.assert_close(weights(models[1])[name], weight, rtol=1e-5, atol=1e-6)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_go_through_the_chain(dtype, monkeypatch):
    monkeypatch.setitem(vogn.kernels.TABLE["linear_step"], "native", lambda blocks: pytest.fail("taken"))
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()).to(dtype)
    opt = FNGD(model, lr=0.1, freeze_after=1, share="mean", **DETERMINISTIC)
    for k in range(3):
        x, y = batch(8, k, dtype=dtype)
        run(opt, model, x, y)


@needs_compiler
def test_any_method_without_curvature_may_use_the_pass(monkeypatch):
    """Nothing asks which method it is: a chain that says it is linear is enough."""
    calls, table = [], vogn.kernels.TABLE["linear_step"]
    step = table["native"]
    monkeypatch.setitem(table, "native", lambda blocks: calls.append(len(blocks)) or step(blocks))

    class Never(Prior):
        def without_curvature(self, group):
            return "there is none"

    model = network().float()
    start = weights(model)
    opt = NaturalGradient(
        model, SampleSpace(), "empirical", steps=(Never(),), lr=0.1, weight_decay=0.2, **DETERMINISTIC
    )
    x, y = batch(8, dtype=torch.float32)
    found = torch.autograd.grad(Categorical()(model(x), y), list(model.parameters()))
    run(opt, model, x, y)
    assert calls == [3]
    for (name, weight), gradient in zip(weights(model).items(), found, strict=True):
        torch.testing.assert_close(weight, start[name] - 0.1 * (gradient + 0.2 * start[name]))
