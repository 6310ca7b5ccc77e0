"""Small pools, learners and oracles of active learning."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vogn.active import ActiveLearner, NaturalGradientMethod
from vogn.likelihoods import Categorical, Gaussian

CLASSES = 3


def classification(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three well-separated classes in the plane."""
    source = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % CLASSES
    centres = torch.tensor([[2.0, 0.0], [-1.0, 1.7], [-1.0, -1.7]])
    return centres[y] + 0.5 * torch.randn(n, 2, generator=source), y


def regression(n: int = 40, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A line in two features with noise, targets ``(n, 1)``."""
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=source)
    return x, (x @ torch.tensor([[1.0], [-2.0]])) + 0.1 * torch.randn(n, 1, generator=source)


def network(outputs: int = CLASSES) -> nn.Module:
    return nn.Sequential(nn.Linear(2, 6), nn.Tanh(), nn.Linear(6, outputs))


def method(name: str = "vogn", **options: Any) -> NaturalGradientMethod:
    """A short training."""
    return NaturalGradientMethod(name, **{"steps": 6, "update_steps": 3, "batch_size": 8, "lr": 0.05} | options)


def learner(posterior_method: Any = None, acquisition: Any = "bald", **options: Any) -> ActiveLearner:
    """Of the three classes, with an oracle, a test part and two new labels per round."""
    x, y = classification()
    chosen = {
        "likelihood": Categorical(),
        "oracle": lambda numbers, inputs: y[numbers],
        "initial": 4,
        "query_size": 2,
        "samples": 4,
        "test": (x[:12], y[:12]),
    }
    return ActiveLearner(network, posterior_method or method(), x, acquisition, **chosen | options)


def regression_learner(
    posterior_method: Any = None, acquisition: Any = "information_gain", **options: Any
) -> ActiveLearner:
    """Of the line."""
    x, y = regression()
    chosen = {
        "likelihood": Gaussian(noise=0.3),
        "oracle": lambda numbers, inputs: y[numbers],
        "initial": 4,
        "query_size": 2,
        "samples": 4,
        "test": (x[:12], y[:12]),
    }
    return ActiveLearner(lambda: network(1), posterior_method or method(), x, acquisition, **chosen | options)
