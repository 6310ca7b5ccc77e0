"""Posteriors written by hand: prediction knows the protocol only."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vogn
from vogn.linalg.layout import MatrixLayout
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.structures import Diagonal


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
        mean = self.mean()
        changes = [
            sum((jacobian[name] * (member[name] - mean[name])).flatten(2).sum(-1) for name in mean)
            for member in self.members
        ]
        return sum(change.unsqueeze(-1) * change.unsqueeze(-2) for change in changes) / len(changes)

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


class Counting:
    """A loader that counts how often it is read."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches
        self.readings = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.readings += 1
        return iter(self.batches)


def gaussian(model: nn.Module, deviation: float) -> GaussianPosterior:
    """Independent noise of the given standard deviation on the weights of all linear layers."""
    blocks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            layout = MatrixLayout((f"{name}.weight",), (tuple(module.weight.shape),), tuple(module.weight.shape))
            state = Diagonal().init(layout.block_shape, initial=1.0, dtype=torch.float64, device="cpu")
            blocks.append(PosteriorBlock(f"{name}.weight", layout, Diagonal(), state, shift=0.0, ess=deviation**-2))
    means = {name: p.detach() for name, p in model.named_parameters()}
    return GaussianPosterior(blocks, means, likelihood={"kind": "categorical"})


@pytest.fixture
def around() -> Callable[[nn.Module, float], GaussianPosterior]:
    """:func:`gaussian`."""
    return gaussian


def points(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two classes in two dimensions, inside and outside of a circle."""
    x = torch.randn(n, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x, (x.square().sum(1) > 1.4).long()


@dataclass
class NormedCase:
    """A trained network with six batch norm layers, whose running statistics are those of the mean weights."""

    model: nn.Module
    posterior: GaussianPosterior
    train: Tensor
    x: Tensor
    y: Tensor
    samples: int = 8
    seed: int = 3

    def batches(self) -> list[Tensor]:
        return list(self.train.split(64))

    def loader(self) -> Counting:
        return Counting(self.batches())

    def noisy(self, deviation: float) -> GaussianPosterior:
        return gaussian(self.model, deviation)

    def predict(self, x: Tensor, **options: Any) -> vogn.Predictive:
        return vogn.predict(self.model, self.posterior, x, samples=self.samples, seed=self.seed, **options)


@pytest.fixture(scope="session")
def trained() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for depth in range(6):
            layers += [nn.Linear(2 if depth == 0 else 16, 16), nn.BatchNorm1d(16), nn.ReLU()]
        model = nn.Sequential(*layers, nn.Linear(16, 2)).double()
        x, y = points(256, 1)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        vogn.update_batchnorm(model, x.split(64))
    return model.eval()


@pytest.fixture
def case(trained: nn.Module) -> NormedCase:
    model = copy.deepcopy(trained)
    return NormedCase(model, gaussian(model, 0.15), points(256, 1)[0], *points(200, 2))
