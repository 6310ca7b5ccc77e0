"""FNGD with kept coefficients in the models and loops that people have."""

import copy
from contextlib import nullcontext

import pytest
import torch
import torch.utils.checkpoint
from torch import nn

from fngd_cases import (
    blocks_of,
    build,
    coefficients,
    directions,
    every_network,
    frozen,
    network,
    per_example,
    run,
    weights,
)
from tiny_models import batch, fill
from vogn.likelihoods import Categorical


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.offset = nn.Linear(3, 3), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return torch.tanh(self.layer(x) + self.offset)


@pytest.mark.filterwarnings("ignore:no layer rule")
def test_a_parameter_without_rows_has_the_mean():
    x, y = batch(8)
    model = fill(Bare().double())
    opt = frozen(model, x, y)
    opt.param_groups[0]["lr"] = 1.0
    gradient = torch.autograd.grad(Categorical()(model(x), y), model.offset)[0]
    before = weights(model)
    run(opt, model, x, y, torch.arange(8))
    memory = opt.state[model.offset]["memory"]
    mean = float(memory["coefficient_sum"] / memory["coefficient_count"])
    torch.testing.assert_close(directions(opt, model, before)["offset"], mean * gradient)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x):
        return self.layer(torch.tanh(self.layer(x)))


@pytest.mark.parametrize("kind", [Tied, Twice])
def test_shared_weights_are_weighted_once(kind):
    x, y = batch(8)
    model = fill(kind().double())
    opt = frozen(model, x, y)
    opt.param_groups[0]["lr"] = 1.0
    order = torch.arange(7, -1, -1)
    rows, before = per_example(model, x[order], y[order]), weights(model)
    run(opt, model, x[order], y[order], order)
    for block, names in blocks_of(opt).items():
        for name in names:
            expected = torch.einsum("n,n...->...", coefficients(opt)[block][order], rows[name]) / 8
            torch.testing.assert_close(directions(opt, model, before)[name], expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant):
    x, y = batch(8)
    models = network(), network()
    for model, wrapped in zip(models, (False, True), strict=True):
        opt = frozen(model, x, y)

        def forward(inputs, model=model, wrapped=wrapped):
            if not wrapped:
                return model(inputs)
            hidden = torch.utils.checkpoint.checkpoint(model[:3], inputs, use_reentrant=reentrant)
            return model[3:](hidden)

        for parts in (1, 2):
            run(opt, forward, x.clone().requires_grad_(), y, torch.arange(8), parts=parts)
    for name, weight in weights(models[0]).items():
        assert torch.equal(weights(models[1])[name], weight), name


def test_a_compiled_model_trains_like_the_plain_one():
    torch._dynamo.reset()
    x, y = batch(8)
    models = network(), network()
    for model, compiled in zip(models, (False, True), strict=True):
        opt = build(model, lr=0.1, freeze_after=2)
        forward = torch.compile(model, backend="aot_eager") if compiled else model
        for _ in range(4):
            run(opt, forward, x, y, torch.arange(8))
    for name, weight in weights(models[0]).items():
        torch.testing.assert_close(weights(models[1])[name], weight, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_near_single_precision(half):
    x, y = batch(8)
    models = network().float(), network().float()
    start = torch.cat([p.detach().flatten() for p in models[0].parameters()])
    for model, enabled in zip(models, (False, True), strict=True):
        opt = frozen(model, x.float(), y)
        for _ in range(3):
            opt.zero_grad()
            with opt.sampled_params(torch.arange(8)):
                with torch.autocast("cpu", dtype=half) if enabled else nullcontext():
                    loss = Categorical()(model(x.float()), y)
                loss.backward()
            opt.step()
    first, second = (torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models)
    assert 0 < float((first - second).norm() / (first - start).norm()) < 8 * torch.finfo(half).eps / 2


def test_a_copy_inside_a_context_is_another_model():
    x, y = batch(8)
    model = network()
    opt = frozen(model, x, y)
    with opt.sampled_params(torch.arange(8)):
        assert "forward" in vars(model[0])
        twin = copy.deepcopy(model)
        Categorical()(twin(x), y).backward()
        Categorical()(model(x), y).backward()
    plain = torch.autograd.grad(Categorical()(model(x), y), list(model.parameters()))
    for p, q, g in zip(model.parameters(), twin.parameters(), plain, strict=True):
        assert torch.equal(q.grad, g) and not torch.equal(p.grad, g)
    for module in (*model.modules(), *twin.modules()):
        assert "forward" not in vars(module)


@every_network
def test_evaluation_and_forwards_without_gradients_are_left_alone(make):
    x, y = batch(8)
    model = make()
    opt = frozen(model, x, y)
    outside = model(x).detach()
    with opt.sampled_params(torch.arange(8)):
        with torch.no_grad():
            assert torch.equal(model(x), outside)
        outputs = model(x)
        torch.testing.assert_close(outputs, outside)
        Categorical()(outputs, y).backward()
    opt.step()
