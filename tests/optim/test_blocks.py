"""Blocks follow what the user does to the model: freezing, unfreezing, copying."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import vogn
from vogn.likelihoods import Categorical


def setup(name: str = "vogn") -> tuple[nn.Module, vogn.NaturalGradient, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    opt = vogn.METHODS[name].build(model, ess=50.0, weight_decay=0.01, lr=0.1)
    return model, opt, torch.randn(8, 3, dtype=torch.float64), torch.randint(0, 2, (8,))


def train(model: nn.Module, opt: vogn.NaturalGradient, x: Tensor, y: Tensor, steps: int = 2) -> None:
    for _ in range(steps):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()


def test_a_layer_frozen_in_the_middle_of_a_run_is_neither_moved_nor_perturbed() -> None:
    model, opt, x, y = setup()
    train(model, opt, x, y)
    model[0].requires_grad_(False)
    frozen = model[0].weight.detach().clone()
    other = model[2].weight.detach().clone()
    opt.zero_grad()
    with opt.sampled_params():
        assert torch.equal(model[0].weight, frozen)
        assert not torch.equal(model[2].weight, other)
        Categorical()(model(x), y).backward()
    opt.step()
    assert torch.equal(model[0].weight, frozen)
    assert not torch.equal(model[2].weight, other)


def test_a_layer_unfrozen_in_the_middle_of_a_run_is_trained_from_then_on() -> None:
    model, opt, x, y = setup()
    model[0].requires_grad_(False)
    train(model, opt, x, y)
    assert [line["block"] for line in opt.coverage()] == ["", "", "2.weight", "2.weight"]
    before = model[0].weight.detach().clone()
    model[0].requires_grad_(True)
    train(model, opt, x, y)
    assert [line["block"] for line in opt.coverage()] == ["0.weight", "0.weight", "2.weight", "2.weight"]
    assert not torch.equal(model[0].weight, before)


def test_a_bias_unfrozen_later_restarts_its_blocks_curvature_in_the_new_shape() -> None:
    model, opt, x, y = setup()
    model[0].bias.requires_grad_(False)
    train(model, opt, x, y)
    assert opt.state[model[0].weight]["curvature"]["c"].shape == (4, 3)
    kept = opt.state[model[2].weight]["memory"]["observations"].clone()
    model[0].bias.requires_grad_(True)
    train(model, opt, x, y, steps=1)
    assert opt.state[model[0].weight]["curvature"]["c"].shape == (4, 4)
    assert int(opt.state[model[0].weight]["memory"]["observations"]) == 1
    assert opt.state[model[2].weight]["memory"]["observations"] == kept + 1


@pytest.mark.parametrize("name", list(vogn.METHODS))
def test_a_copy_of_model_and_optimizer_continues_like_the_original(name: str) -> None:
    model, opt, x, y = setup(name)
    train(model, opt, x, y)
    twin_model, twin = copy.deepcopy((model, opt))
    train(model, opt, x, y)
    start = [p.detach().clone() for p in twin_model.parameters()]
    train(twin_model, twin, x, y)
    for p, q, old in zip(model.parameters(), twin_model.parameters(), start, strict=True):
        assert p is not q
        assert torch.equal(p, q)
        assert not torch.equal(q, old)


def test_copying_inside_a_context_is_refused() -> None:
    model, opt, x, y = setup()
    train(model, opt, x, y)
    with pytest.raises(RuntimeError, match="inside a sampled context"), opt.sampled_params():
        copy.deepcopy(opt)
