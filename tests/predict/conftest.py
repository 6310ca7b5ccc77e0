"""Posteriors written by hand: prediction knows the protocol only."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn


class Ensemble:
    """Equally likely sets of weights; draw ``k`` is member ``k`` modulo their number."""

    def __init__(self, members: list[dict[str, Tensor]]) -> None:
        self.members = members
        self.calls: list[tuple[int, int, int]] = []

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> dict[str, Tensor]:
        self.calls.append((n, seed, start))
        chosen = [self.members[k % len(self.members)] for k in range(start, start + n)]
        return {name: torch.stack([member[name] for member in chosen]) for name in self.members[0]}

    def mean(self) -> dict[str, Tensor]:
        return {name: tensor.mean(0) for name, tensor in self.sample(len(self.members)).items()}

    def variance(self) -> dict[str, Tensor]:
        raise NotImplementedError

    def functional_variance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def log_prob(self, params: Mapping[str, Tensor]) -> Tensor:
        raise NotImplementedError

    def entropy(self) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def ensemble() -> type[Ensemble]:
    return Ensemble


@pytest.fixture
def linear() -> nn.Linear:
    """Three inputs, two outputs, float64."""
    torch.manual_seed(0)
    return nn.Linear(3, 2).double()


@pytest.fixture
def members() -> list[dict[str, Tensor]]:
    """Four sets of weights for ``linear``."""
    source = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(*shape, generator=source, dtype=torch.float64)  # noqa: E731
    return [{"weight": draw(2, 3), "bias": draw(2)} for _ in range(4)]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(7, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
