"""Posteriors written down exactly."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from tiny_models import normal
from vogn.likelihoods import Gaussian
from vogn.posterior import GaussianPosterior, Prior


class Exact:
    """``N(mean, scale^2 precision^-1)`` over ``names``; the protocol, nothing more."""

    def __init__(self, shapes: dict[str, torch.Size], mean: Tensor, precision: Tensor, scale: float = 1.0) -> None:
        self.shapes, self.flat = shapes, mean
        self.root = scale * torch.linalg.inv(torch.linalg.cholesky(precision)).T

    def _named(self, flat: Tensor) -> dict[str, Tensor]:
        out, start = {}, 0
        for name, shape in self.shapes.items():
            out[name] = flat[..., start : start + shape.numel()].reshape(*flat.shape[:-1], *shape)
            start += shape.numel()
        return out

    def sample(self, n: int, *, seed: int = 0, start: int = 0) -> dict[str, Tensor]:
        noise = normal(start + n, len(self.flat), seed=seed)[start:]
        return self._named(self.flat + noise @ self.root.T)

    def mean(self) -> dict[str, Tensor]:
        return self._named(self.flat)

    def variance(self) -> dict[str, Tensor]:
        return self._named((self.root @ self.root.T).diagonal())

    def functional_variance(self, jacobian):
        raise NotImplementedError

    def log_prob(self, params):
        raise NotImplementedError

    def entropy(self):
        raise NotImplementedError


@dataclass
class Regression:
    """Linear regression with its exact posterior."""

    model: nn.Linear
    likelihood: Gaussian
    x: Tensor
    y: Tensor
    at: Tensor
    prior: Prior

    def exact(self, *, ess: float | None = None, scale: float = 1.0, shift: float = 0.0) -> Exact:
        design = torch.cat([self.x, torch.ones(len(self.x), 1)], 1).double()
        share = (ess or len(self.x)) / len(self.x) / float(self.likelihood.noise) ** 2
        precision = share * design.T @ design + self.prior.precision * torch.eye(design.shape[1]).double()
        mean = torch.linalg.solve(precision, share * design.T @ self.y)[:, 0]
        shapes = {name: p.shape for name, p in self.model.named_parameters()}
        return Exact(shapes, mean + shift, precision, scale)


@pytest.fixture
def regression() -> Regression:
    model = nn.Linear(2, 1).double()
    x = normal(15, 2, seed=1)
    y = x @ torch.tensor([[1.0], [-0.5]]).double() + 0.3 + 0.4 * normal(15, 1, seed=2)
    return Regression(model, Gaussian(noise=0.4), x, y, 2.0 * normal(40, 2, seed=3), Prior(precision=2.0))


@pytest.fixture
def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def point(model: nn.Module) -> GaussianPosterior:
    return GaussianPosterior([], {name: p.detach() for name, p in model.named_parameters()})
