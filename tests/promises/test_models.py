"""Models as users have them: compiled, checkpointed, frozen, of several precisions, shared with other optimizers."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from vogn.errors import MissingCurvatureError, UnsupportedObservationError


class Checkpointed(nn.Module):
    """The body runs again in backward."""

    def __init__(self, model: nn.Sequential, reentrant: bool | None) -> None:
        super().__init__()
        self.inner, self.reentrant = model, reentrant

    def forward(self, x):
        body = self.inner[:-1]
        if self.reentrant is None:
            return self.inner[-1](body(x))
        return self.inner[-1](torch.utils.checkpoint.checkpoint(body, x, use_reentrant=self.reentrant))


def run_checkpointed(case, tools, reentrant):
    network = tools.square_network if case.method == "evon" else tools.network
    model = Checkpointed(network(), reentrant)
    opt = case.build(model)
    for step in range(3):
        x, y = case.batch(step)
        opt.zero_grad()
        with opt.sampled_params():
            case.likelihood(model(x.requires_grad_()), y).backward()
        opt.step()
    return tools.everything(opt, model)


@pytest.mark.promise("activation checkpointing, non-reentrant")
def test_checkpointing_changes_nothing(tools, case):
    tools.assert_identical(run_checkpointed(case, tools, None), run_checkpointed(case, tools, False))


def probes_hessian(case):
    return case.method in {"ivon", "evon"} and not case.variational


@pytest.mark.promise("activation checkpointing, reentrant (own passes raise)")
def test_reentrant_checkpointing_works_or_raises(tools, case):
    if probes_hessian(case) and case.method == "ivon":  # it has a start and keeps it
        with pytest.warns(UserWarning, match="keeps its initial"):
            run_checkpointed(case, tools, True)
    elif probes_hessian(case):  # EVON has none
        with pytest.raises(MissingCurvatureError, match="never been observed"):
            run_checkpointed(case, tools, True)
    elif any(statistic.NEEDS_LIKELIHOOD for statistic in case.build(tools.network()).statistics):  # own passes
        with pytest.raises(MissingCurvatureError, match="use_reentrant=False"):
            run_checkpointed(case, tools, True)
    else:
        tools.assert_identical(run_checkpointed(case, tools, None), run_checkpointed(case, tools, True))


@pytest.mark.promise("`torch.compile`: no graph break, no recompilation (Hessian probes raise)")
def test_a_compiled_model_trains_like_the_plain_one(tools, case):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    if probes_hessian(case):
        model = tools.network()
        with pytest.raises(UnsupportedObservationError, match="which a torch.compile'd model cannot"):
            case.train(case.build(model), torch.compile(model, backend="aot_eager"), 1)
        return
    model, twin = tools.network(), tools.network()
    opt, other = case.build(model), case.build(twin)
    compiled = torch.compile(twin, backend="aot_eager")
    frames = []
    for step in range(4):
        case.train(opt, model, 1, start=step)
        case.train(other, compiled, 1, start=step)
        frames.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert not torch._dynamo.utils.counters["graph_break"], torch._dynamo.utils.counters["graph_break"]
    assert frames[-1] == frames[1] > 0, f"not compiled, or recompiled after the second step: {frames}"
    # the compiler may take an operation apart, so sums round differently
    tools.assert_near(tools.everything(opt, model), tools.everything(other, twin), 1e-12)


class Attending(nn.Module):
    """Three tokens from three inputs, attention between them, a head."""

    def __init__(self, tools):
        super().__init__()
        self.embed, self.attention = nn.Linear(1, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)
        tools.fill(self.double())

    def forward(self, x):
        tokens = self.embed(x.unsqueeze(-1))
        return self.head(self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(1))


@pytest.mark.promise("`torch.compile`: no graph break, no recompilation (Hessian probes raise)")
@pytest.mark.parametrize("case", [("vogn", "variational"), ("kfac", "deterministic")], indirect=True)
def test_compiled_attention_is_one_graph(tools, case):
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, twin = Attending(tools), Attending(tools)
    opt, other = case.build(model), case.build(twin)
    compiled = torch.compile(twin, backend="aot_eager", fullgraph=True)
    case.train(opt, model, 3)
    case.train(other, compiled, 3)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    tools.assert_near(tools.everything(opt, model), tools.everything(other, twin), 1e-12)  # as above


@pytest.mark.slow
@pytest.mark.promise("`torch.compile`: no graph break, no recompilation (Hessian probes raise)")
@pytest.mark.parametrize(
    "case", [("vogn", "variational"), ("kfac", "variational"), ("ivon", "variational")], indirect=True
)
def test_inductor_agrees(tools, case):
    torch._dynamo.reset()
    model, twin = tools.network(), tools.network()
    opt, other = case.build(model), case.build(twin)
    compiled = torch.compile(twin, backend="inductor")
    case.train(opt, model, 4)
    case.train(other, compiled, 4)
    # fused kernels sum in another order; measured: 3e-15
    tools.assert_near(tools.everything(opt, model), tools.everything(other, twin), 1e-12)


@pytest.mark.promise("the encoder layer's inference fast path stays in use")
def test_the_fast_path_is_taken_outside_contexts(tools, case, monkeypatch):
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).double()
    tools.fill(layer)
    model = nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.Linear(1, 4).double(), layer, nn.Flatten(), nn.Linear(12, 3).double()
    )
    opt = case.build(model)
    if probes_hessian(case):
        with sdpa_kernel(SDPBackend.MATH):
            case.train(opt, model, 1)
    else:
        case.train(opt, model, 1)
    taken = []
    fused = torch._transformer_encoder_layer_fwd
    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", lambda *args: taken.append(1) or fused(*args))
    model.eval()
    with torch.no_grad():
        model(case.batch(0)[0])
    assert taken


def attached(model):
    """Whether any module carries a hook or a forward of ours."""
    return any(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or "forward" in vars(module)
        for module in model.modules()
    )


@pytest.mark.promise("the encoder layer's inference fast path stays in use")
def test_hooks_are_attached_in_contexts_only(tools, case):
    model = tools.network()
    opt = case.build(model, observe_every=1)
    for step in range(2):
        with opt.sampled_params():
            assert attached(model) == any(statistic.NEEDS_PAIRS for statistic in opt.statistics)
            case.backward(model, step)
            assert attached(model) == any(statistic.NEEDS_PAIRS for statistic in opt.statistics)
        assert not attached(model)
        opt.step()
    assert not attached(model)


@pytest.mark.promise("frozen and late-unfrozen parameters, `add_param_group`")
def test_a_frozen_layer_stays_and_joins_when_it_is_unfrozen(tools, case):
    model = tools.network()
    model[0].requires_grad_(False)
    opt = case.build(model)
    before = model[0].weight.detach().clone()
    case.train(opt, model, 2)
    assert torch.equal(model[0].weight, before)
    model[0].requires_grad_(True)
    case.train(opt, model, 2, start=2)
    assert not torch.equal(model[0].weight, before)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.promise("frozen and late-unfrozen parameters, `add_param_group`")
def test_a_group_may_be_added_between_steps(tools, case):
    model = tools.network()
    head = nn.Parameter(tools.normal(3, seed=5))
    opt = case.build(model)
    case.train(opt, model, 2)
    opt.add_param_group({"params": [("offset", head)], "lr": 0.01})
    before = head.detach().clone()
    for step in range(2, 4):
        x, y = case.batch(step)
        opt.zero_grad()
        with opt.sampled_params():
            case.likelihood(model(x) + head, y).backward()
        opt.step()
    assert not torch.equal(head, before) and bool(head.isfinite().all())


class Mixed(nn.Module):
    """A trunk in single and a head in double precision."""

    def __init__(self, tools):
        super().__init__()
        network = tools.network()
        self.trunk, self.head = network[:-1].float(), network[-1]

    def forward(self, x):
        return self.head(self.trunk(x.float()).double())


@pytest.mark.promise("parameters of different dtypes")
def test_every_parameter_keeps_its_dtype(tools, case):
    model = Mixed(tools)
    groups = [{"params": [*model.head.parameters()]}]  # a block over all layers has one dtype
    joined = case.build(tools.network()).partition == "model"
    opt = case.build(model, groups=groups) if joined else case.build(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    case.train(opt, model, 3)
    for name, parameter in model.named_parameters():
        assert parameter.dtype == before[name].dtype
        assert bool(parameter.isfinite().all()) and not torch.equal(parameter, before[name])


@pytest.mark.promise("another optimizer beside ours")
@pytest.mark.parametrize("step_first", [True, False])
def test_a_foreign_optimizer_has_its_own_layers(tools, case, step_first):
    model = tools.network()
    opt = case.build(model[3])
    other = torch.optim.SGD(model[:3].parameters(), lr=0.1)
    reference = tools.network()
    sgd = torch.optim.SGD(reference.parameters(), lr=0.1)
    for step in range(3):
        opt.zero_grad()
        other.zero_grad()
        trunk, head = tools.flat(model[:3]), tools.flat(model[3])
        with opt.sampled_params():
            case.backward(model, step)
            assert torch.equal(tools.flat(model[:3]), trunk)
            if step:  # some methods have no noise before their first curvature
                assert torch.equal(tools.flat(model[3]), head) != case.variational
        first, second = (opt, other) if step_first else (other, opt)
        first.step()
        second.step()
        assert not torch.equal(tools.flat(model[3]), head)
        if step == 0 and not case.variational:  # the trunk has plain gradients
            sgd.zero_grad()
            case.backward(reference, step)
            sgd.step()
            for mine, plain in zip(model[:3].parameters(), reference[:3].parameters(), strict=True):
                torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-14)
    assert {row["parameter"] for row in opt.coverage()} == {"weight", "bias"}


@pytest.mark.promise("`opt.close()` and garbage collection remove everything")
def test_nothing_is_left_behind(tools, case):
    model = tools.network()
    before = [p.detach().clone() for p in model.parameters()]
    opt = case.build(model)
    case.train(opt, model, 1)
    means = [p.detach().clone() for p in model.parameters()]
    opt.zero_grad()
    opt.sample_()
    case.backward(model, 0)
    opt.close()
    opt.close()
    assert all(torch.equal(p, mean) for p, mean in zip(model.parameters(), means, strict=True))
    assert not all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert not attached(model)
    with pytest.raises(RuntimeError, match="closed"):
        opt.sample_()
    opt = case.build(model)
    case.train(opt, model, 1)
    gone = weakref.ref(opt)
    del opt
    gc.collect()
    assert gone() is None


@pytest.mark.promise("no tensor is kept from step to step, over 1,000 steps")
@pytest.mark.parametrize("steps", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_tensor_is_kept_from_step_to_step(tools, case, steps):
    model = tools.network(torch.float32)
    opt = case.build(model)

    def alive():
        gc.collect()
        return sum(isinstance(item, torch.Tensor) for item in gc.get_objects())

    case.train(opt, model, 20, dtype=torch.float32)
    before = alive()
    case.train(opt, model, steps, start=20, dtype=torch.float32)
    assert alive() <= before
