"""Blocks that are computed together are computed as each would be alone, bit for bit."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

import vogn
from tiny_models import OPTIONS, batch, fill
from vogn.errors import NonFiniteStatisticsError
from vogn.likelihoods import Categorical
from vogn.linalg.each import subtract_each
from vogn.linalg.joining import join, split

METHODS = ("ivon", "vadam", "vogn")
ALONE = -1
"""As the size of the largest block that is computed with others."""


def network(dtype=torch.float64):
    parts = [nn.Linear(3, 5), nn.LayerNorm(5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)]
    return fill(nn.Sequential(*parts).to(dtype))


def state_of(opt, model):
    found = {name: p.detach().clone() for name, p in model.named_parameters()}
    for place, p in enumerate(model.parameters()):
        for kind in ("curvature", "memory"):
            found |= {f"{place} {kind} {k}": t.clone() for k, t in opt.state.get(p, {}).get(kind, {}).items()}
    return found


def run(method, variational, steps=4, model=None, opt=None, start=0, **options):
    model = model or network()
    opt = opt or vogn.METHODS[method].build(model, **(OPTIONS | {"variational": variational} | options))
    for step in range(start, start + steps):
        x, y = batch(8, step, model[0].weight.dtype)
        opt.zero_grad()
        for _ in range(options.get("mc_samples", 1)):
            with opt.sampled_params():
                Categorical()(model(x), y).backward()
        if step == 2:
            model[3].weight.grad = None  # it stays behind: its numbers are no longer those of the others
        opt.step()
    return opt, model


def groups_of(model):
    return [{"params": list(model[0].parameters()), "weight_decay": 0.3}, {"params": [model[5].bias], "lr": 0.01}]


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("options", [{}, {"mc_samples": 2}, {"groups": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_together_is_one_by_one(monkeypatch, method, variational, options, dtype):
    """In single precision by the kernels in C, where there is a compiler."""
    found = []
    for largest in (ALONE, 1 << 14):
        monkeypatch.setattr("vogn.capture.bundles.LARGE", largest)
        model = network(dtype)
        own = {"groups": groups_of(model)} if "groups" in options else dict(options)
        found.append(state_of(*run(method, variational, model=model, **own)))
    assert_same(*found)


def accumulated(model, opt, x, y):
    """Two contexts, the gradients of both in ``.grad``, and a step in between of another batch's evidence only."""
    for part in (slice(0, 4), slice(4, 8)):
        with opt.sampled_params():
            Categorical()(model(x[part]), y[part]).backward()
    opt.step()


@pytest.mark.parametrize("method", METHODS)
def test_several_contexts_before_a_step_keep_each_others_evidence(monkeypatch, method):
    """The memory that a context packs into is written over by the next one."""
    found = []
    for largest in (ALONE, 1 << 14):
        monkeypatch.setattr("vogn.capture.bundles.LARGE", largest)
        model = network(torch.float32)
        opt = vogn.METHODS[method].build(model, **(OPTIONS | {"mc_samples": 2}))
        for step in range(3):
            opt.zero_grad()
            accumulated(model, opt, *batch(8, step, torch.float32))
        found.append(state_of(opt, model))
    assert_same(*found)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("active", [1, 2])
def test_blocks_that_are_drawn_together_may_be_observed_apart(monkeypatch, active, dtype):
    """The next context draws into the memory of this one's displacement."""
    found = []
    for largest in (ALONE, 1 << 14):
        monkeypatch.setattr("vogn.capture.bundles.LARGE", largest)
        model = fill(nn.ModuleList([nn.Linear(3, 4, bias=False) for _ in range(3)]).to(dtype))
        opt = vogn.IVON(model, **(OPTIONS | {"mc_samples": 2}))
        for step in range(4):
            x, y = batch(8, step, dtype)
            opt.zero_grad()
            for _ in range(2):
                with opt.sampled_params():
                    layers = model[:active] if step == 2 else model
                    Categorical()(sum(layer(x) for layer in layers), y).backward()
            opt.step()
        found.append(state_of(opt, model))
    assert_same(*found)


@pytest.mark.parametrize("method", METHODS)
def test_weights_whose_dtype_is_changed_come_back_bit_for_bit(method):
    opt, model = run(method, True, model=network(torch.float32), steps=2)
    model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(1e-12 * torch.randn_like(p))
    before = [p.detach().clone() for p in model.parameters()]
    with opt.sampled_params():
        assert not all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def test_steps_of_a_chain_may_keep_the_mean_of_a_bundle():
    """It is not written over by the next step's."""

    class Anchored(vogn.optim.steps.Step):
        SCOPE = "element"
        anchor = None

        def __call__(self, updates, context):
            (block,) = context.blocks
            self.anchor = block.mean if self.anchor is None else self.anchor
            self.moved = float((block.mean - self.anchor).abs().double().sum())
            return updates

    model, last = network(torch.float32)[3:], Anchored()
    opt = vogn.VOGN(model, steps=[vogn.optim.steps.Prior(), vogn.optim.steps.Solve(), last], **OPTIONS)
    before = [p.detach().clone() for p in model.parameters()]
    for step in range(2):
        there = [p.detach().clone() for p in model.parameters()]
        x, y = torch.randn(8, 5), batch(8, step, torch.float32)[1]
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
    expected = sum(float((p - old).abs().double().sum()) for p, old in zip(there, before, strict=True))
    assert last.moved == pytest.approx(expected) and expected > 0.0


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_several_dtypes_come_back_bit_for_bit(method):
    """Blocks of several dtypes."""
    model = network(torch.float32)
    model[0].to(torch.float64)
    model[0].register_forward_pre_hook(lambda module, args: (args[0].double(),))
    model[0].register_forward_hook(lambda module, args, out: out.float())
    opt = vogn.METHODS[method].build(model, **OPTIONS)
    for step in range(3):
        x, y = batch(8, step, torch.float32)
        opt.zero_grad()
        before = [p.detach().clone() for p in model.parameters()]
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))
        opt.step()


def test_bundles_keep_little_memory(monkeypatch):
    """Whatever blocks take part together, few bundles are remembered."""
    monkeypatch.setattr("vogn.capture.bundles.KEPT", 2)
    opt, model = run("ivon", True, steps=1)
    table, _ = opt._build()
    for count in range(2, len(table.blocks) + 1):
        found = table.bundles.of(table.blocks[:count])
        assert found[0] is table.bundles.of(table.blocks[:count])[0]
        assert len(table.bundles._known) <= 2
    run("ivon", True, model=model, opt=opt, start=1, steps=1)


def test_few_calls_for_many_blocks(monkeypatch):
    """The chain of steps sees one block where it saw seven."""
    seen = []
    original = vogn.optim.update.natural_gradient_step

    def spy(context, *rest):
        seen.append(len(context.blocks))
        return original(context, *rest)

    monkeypatch.setattr("vogn.optim.update.natural_gradient_step", spy)
    run("ivon", True, steps=2)
    monkeypatch.setattr("vogn.capture.bundles.LARGE", ALONE)
    run("ivon", True, steps=1)
    assert seen == [1, 1, 7]


def test_states_lie_in_one_piece_after_a_step():
    opt, model = run("ivon", True, steps=2)
    curvatures = [opt.state[p]["curvature"]["c"] for p in model.parameters()]
    assert len({c.untyped_storage().data_ptr() for c in curvatures}) == 1
    assert join(curvatures).data_ptr() == curvatures[0].data_ptr()


def test_a_checkpoint_holds_every_number_once_and_goes_on():
    opt, model = run("ivon", True, steps=2)
    stream = io.BytesIO()
    torch.save(opt.state_dict(), stream)
    alone = copy.deepcopy(opt.state_dict())
    for entry in alone["state"].values():
        entry["curvature"] = {k: t.clone() for k, t in entry["curvature"].items()}
        entry["memory"] = {k: t.clone() for k, t in entry["memory"].items()}
    other = io.BytesIO()
    torch.save(alone, other)
    assert stream.tell() <= other.tell()
    twin = copy.deepcopy(model)
    resumed = vogn.METHODS["ivon"].build(twin, **OPTIONS)
    stream.seek(0)
    resumed.load_state_dict(torch.load(stream, weights_only=True))
    run("ivon", True, model=model, opt=opt, start=2)
    run("ivon", True, model=twin, opt=resumed, start=2)
    assert_same(state_of(opt, model), state_of(resumed, twin))


@pytest.mark.parametrize("method", METHODS)
def test_the_block_that_fails_is_named(method):
    opt, model = run(method, True, steps=1)
    before = state_of(opt, model)
    x, y = batch(8, 1, torch.float64)
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    model[3].weight.grad[1, 2] = torch.nan
    with pytest.raises(NonFiniteStatisticsError, match=r"block '3\.weight': the"):
        opt.step()
    assert_same(before, state_of(opt, model))


def test_join_and_split():
    tensors = [torch.arange(6.0).view(2, 3), torch.arange(4.0).view(4, 1, 1), torch.tensor([[7.0, 8.0]]).mT]
    vector = join(tensors)
    assert vector.shape == (12, 1) and vector.flatten().tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 7, 8]
    parts = split(vector, [tuple(t.shape) for t in tensors])
    assert all(torch.equal(a, b) for a, b in zip(parts, tensors, strict=True))
    assert join(parts).data_ptr() == vector.data_ptr()  # in a row: no copy
    assert join(parts[::-1]).flatten().tolist() == [7, 8, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5]
    assert join(parts[1:]).flatten().tolist() == [0, 1, 2, 3, 7, 8]


@pytest.mark.parametrize("rates", [(0.0, 0.0), (0.1, 0.1), (0.0, 0.3)])
def test_a_step_is_new_memory_whatever_the_rate(rates):
    """Means are views of the weights, into which the result is copied."""
    means = [torch.arange(6.0).view(2, 3).mT, torch.ones(2)]
    updates = [torch.full((3, 2), 2.0), torch.tensor([1.0, torch.inf])]
    found = subtract_each(means, updates, rates)
    for mean, update, rate, new in zip(means, updates, rates, found, strict=True):
        assert new.untyped_storage().data_ptr() != mean.untyped_storage().data_ptr()
        torch.testing.assert_close(new, mean - rate * update, equal_nan=True)
