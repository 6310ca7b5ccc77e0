"""A dense replay of the methods that keep a window of mini-batch gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tiny_models import batch, fill
from vogn.likelihoods import Categorical
from vogn.optim import NaturalGradient


def network() -> nn.Sequential:
    """3 inputs, 4 hidden units, 3 classes: 31 parameters."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    fill(model)
    return model


def flatten(named: dict[str, Tensor]) -> Tensor:
    """Block vector of a network of two linear layers: layer after layer, row-major ``[W, bias]``."""
    parts = [torch.cat([named[f"{k}.weight"], named[f"{k}.bias"].unsqueeze(-1)], -1).flatten() for k in ("0", "2")]
    return torch.cat(parts)


def weights(model: nn.Module) -> Tensor:
    return flatten({name: p.detach() for name, p in model.named_parameters()})


def replay(
    opt: NaturalGradient,
    model: nn.Module,
    direction: Callable[[list[Tensor], Tensor, Tensor], Tensor],
    *,
    steps: int,
    lr: float,
    contexts: int = 1,
    micro: int = 1,
) -> Tensor:
    """Train and check every step: the mean moves by ``lr * direction(gradients so far, gradient, mean)``.

    The gradient is computed on a copy of the model, at the weights that the context put there, averaged over contexts
    and micro-batches. Returns the final mean.
    """
    mean, seen = weights(model), []
    for step in range(steps):
        opt.zero_grad()
        gradient = torch.zeros_like(mean)
        for _ in range(contexts):
            with opt.sampled_params():
                other = network()
                other.load_state_dict(model.state_dict())
                for k in range(micro):
                    x, y = batch(8, 10 * step + k)
                    (Categorical()(model(x), y) / micro).backward()
                    found = torch.autograd.grad(F.cross_entropy(other(x), y), list(other.parameters()))
                    named = dict(zip(dict(other.named_parameters()), found, strict=True))
                    gradient += flatten(named) / (contexts * micro)
        opt.step()
        seen.append(gradient)
        mean = mean - lr * direction(seen, gradient, mean)
        torch.testing.assert_close(weights(model), mean, rtol=1e-9, atol=1e-10)
    return mean


def window_outer(seen: list[Tensor], window: int) -> Tensor:
    """``sum_j g_j g_j^T`` over the last gradients."""
    rows = torch.stack(seen[-window:])
    return rows.T @ rows
