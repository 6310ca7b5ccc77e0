"""Tiny tasks, networks and linear-Gaussian problems of continual learning."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tiny_models import fill, labels, normal
from vogn.continual import MultiHead, Task
from vogn.likelihoods import Gaussian

NOISE = 0.5
LIKELIHOOD = Gaussian(noise=NOISE)


def regressions(features: int = 4, sizes: tuple[int, ...] = (9, 5, 14)) -> list[tuple[Tensor, Tensor]]:
    """Tasks of different sizes and slopes."""
    return [(normal(n, features, seed=n) * (k + 1), normal(n, 1, seed=50 + n)) for k, n in enumerate(sizes)]


def joint_posterior(tasks: list[tuple[Tensor, Tensor]], prior: float) -> tuple[Tensor, Tensor]:
    """Precision ``(D, D)`` and mean ``(1, D)`` of the ridge regression on all data, by hand."""
    x, y = (torch.cat(part) for part in zip(*tasks, strict=True))
    precision = x.T @ x / NOISE**2 + prior * torch.eye(x.shape[1], dtype=x.dtype)
    return precision, torch.linalg.solve(precision, x.T @ y / NOISE**2).T


def classification(heads: int = 1, tasks: int = 2, n: int = 24) -> list[Task]:
    """Three classes, four features, float64; with several heads a head for each task."""
    found = []
    for k in range(tasks):
        x, y = normal(n, 4, seed=3 * k), torch.cat([torch.arange(3), labels(n - 3, 3, seed=k)])
        found.append(Task(f"task {k}", x, y, x[:12] + 0.1, y[:12], 3, k if heads > 1 else 0))
    return found


def network(heads: int = 1, seed: int = 0) -> nn.Module:
    """A perceptron 4-5-3 in float64, or one with heads."""
    body = nn.Sequential(nn.Linear(4, 5), nn.Tanh())
    model = MultiHead(body, 5, [3] * heads) if heads > 1 else nn.Sequential(*body, nn.Linear(5, 3))
    return fill(model.double(), seed)


def shake(model: nn.Module, size: float = 0.1) -> None:
    """Move all weights by known amounts."""
    with torch.no_grad():
        for k, p in enumerate(model.parameters()):
            p.add_(size * normal(*p.shape, seed=700 + k, dtype=p.dtype))


def loader(task: Task, size: int = 10) -> list[tuple[Tensor, Tensor]]:
    """Batches of the training part."""
    return list(zip(task.x_train.split(size), task.y_train.split(size), strict=True))
