"""Tiny models and plain training loops that every test of the optimizers shares."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vogn.likelihoods import Categorical
from vogn.optim import METHODS


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def fill(model, seed=0):
    """Reproducible weights without the global random state."""
    with torch.no_grad():
        for k, parameter in enumerate(model.parameters()):
            parameter.copy_(0.5 * normal(*parameter.shape, seed=100 * seed + k))
    return model


def network(seed=0, dtype=torch.float64):
    """3 inputs, 4 hidden units, 3 classes."""
    return fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), seed).to(dtype)


def square_network():
    """Its gradients have full rank: bias-free square layers and no softmax right behind them.

    Where the gradients' contractions have no full rank, their eigenbasis is not unique: any rounding turns it, and the
    curvature that EVON stores in it. A test of equality needs a unique basis.
    """
    head = nn.Linear(3, 3, bias=False)
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False), nn.Tanh(), head)
    fill(model.double())
    head.requires_grad_(False)
    return model


def twin(model):
    """A copy of :func:`network` that no optimizer watches, for passes of the test's own inside a context."""
    other = network(dtype=next(model.parameters()).dtype)
    other.load_state_dict(model.state_dict())
    return other


def batch(n=8, seed=0):
    labels = torch.randint(0, 3, (n,), generator=torch.Generator().manual_seed(seed))
    return normal(n, 3, seed=seed + 7), labels


def build(method, model, **options):
    """A named method with settings under which every method moves visibly and stays calm."""
    common = {"lr": 0.05, "ess": 100.0, "weight_decay": 1e-2, "damping": 1e-2}
    return METHODS[method].constructor(model, **(common | options))


def train(opt, model, steps, *, start=0, likelihood=None, contexts=1):
    """The loop of the documentation on a fresh batch per step."""
    likelihood = likelihood or Categorical()
    for step in range(start, start + steps):
        x, y = batch(seed=step)
        opt.zero_grad()
        for _ in range(contexts):
            with opt.sampled_params():
                likelihood(model(x), y).backward()
        opt.step()
    return model


def weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def curvature(opt):
    """All curvature states, ``{parameter name: state}``."""
    names = {p: n for group in opt.param_groups for n, p in zip(group["param_names"], group["params"], strict=True)}
    first = {parameter: state for parameter, state in opt.state.items() if "curvature" in state}
    return {names[p]: {k: t.clone() for k, t in state["curvature"].items()} for p, state in first.items()}


class Tools:
    normal = staticmethod(normal)
    fill = staticmethod(fill)
    network = staticmethod(network)
    square_network = staticmethod(square_network)
    twin = staticmethod(twin)
    batch = staticmethod(batch)
    build = staticmethod(build)
    train = staticmethod(train)
    weights = staticmethod(weights)
    curvature = staticmethod(curvature)


@pytest.fixture
def tools():
    return Tools
