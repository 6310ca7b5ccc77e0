"""Reproducible tensors, tiny models and the training loop of the documentation, without the global random state.

Conftests and tests import what stands in this folder: it is on pytest's ``pythonpath``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vogn.likelihoods import Categorical
from vogn.optim import NaturalGradient

OPTIONS: dict[str, float] = {"lr": 0.05, "ess": 100.0, "weight_decay": 1e-2, "damping": 1e-2}
"""Settings under which every method moves visibly and stays calm."""


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def labels(n: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(0, classes, (n,), generator=torch.Generator().manual_seed(seed))


def fill(model: nn.Module, seed: int = 0, *, vectors: float = 0.0) -> nn.Module:
    """Draws all parameters; those of one dimension are then shifted by ``vectors``."""
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            shift = vectors if parameter.ndim == 1 else 0.0
            parameter.copy_(0.5 * normal(*parameter.shape, seed=100 * seed + k) + shift)
    return model


def square_network() -> nn.Sequential:
    """Its gradients have full rank: bias-free square layers and no softmax right behind them.

    Where the gradients' contractions have no full rank, their eigenbasis is not unique: any rounding turns it, and the
    curvature that EVON stores in it. A test of equality needs a unique basis.
    """
    head = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False), nn.Tanh(), head)
    fill(model.double())
    head.requires_grad_(False)
    return model


def batch(n: int = 8, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Three inputs and one of three classes per example."""
    return normal(n, 3, seed=seed + 7, dtype=dtype), labels(n, 3, seed)


def train(
    opt: NaturalGradient,
    model: Callable[..., Tensor],
    steps: int,
    *,
    start: int = 0,
    likelihood: Any = None,
    contexts: int = 1,
    dtype: torch.dtype = torch.float64,
    batches: Callable[..., tuple[Tensor, Tensor]] = batch,
) -> Any:
    """The loop of the documentation on a fresh batch per step."""
    likelihood = likelihood or Categorical()
    for step in range(start, start + steps):
        x, y = batches(seed=step, dtype=dtype)
        opt.zero_grad()
        for _ in range(contexts):
            with opt.sampled_params():
                likelihood(model(x), y).backward()
        opt.step()
    return model


def flat(model: nn.Module) -> Tensor:
    """All parameters in one vector of its own."""
    return torch.cat([p.detach().flatten() for p in model.parameters()])
