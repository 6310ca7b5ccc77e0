"""Captured graphs die with their context, without the garbage collector's help."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

import vogn
from vogn.likelihoods import Categorical


@pytest.mark.parametrize("variational", [True, False])
@pytest.mark.parametrize("name", list(vogn.METHODS))
def test_activations_are_freed_when_the_context_ends(name: str, variational: bool) -> None:
    torch.manual_seed(0)
    seen: list[weakref.ref[torch.Tensor]] = []

    class Spy(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.tanh(x)
            seen.append(weakref.ref(y))
            return y

    model = nn.Sequential(nn.Linear(3, 4), Spy(), nn.Linear(4, 2))
    opt = vogn.METHODS[name].build(model, ess=10.0, variational=variational)
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    gc.collect()
    gc.disable()
    try:
        for _ in range(3):
            opt.zero_grad()
            with opt.sampled_params():
                Categorical()(model(x), y).backward()
            opt.step()
        assert len(seen) == 3
        assert all(reference() is None for reference in seen)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", [name for name, info in vogn.METHODS.items() if info.needs_model])
def test_a_micro_batch_is_freed_when_its_backward_ends(name: str) -> None:
    torch.manual_seed(0)
    seen: list[weakref.ref[torch.Tensor]] = []
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[1].register_forward_hook(lambda module, args, output: seen.append(weakref.ref(output)))
    opt = vogn.METHODS[name].build(model, ess=10.0)
    x, y = torch.randn(6, 3), torch.randint(0, 2, (6,))
    gc.collect()
    gc.disable()
    try:
        with opt.sampled_params():
            for _ in range(3):
                (Categorical()(model(x), y) / 3).backward()
                assert seen[-1]() is None
        opt.step()
    finally:
        gc.enable()
