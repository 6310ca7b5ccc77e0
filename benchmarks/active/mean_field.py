"""Gaussian mean field by reparameterised gradients of the bound, for many networks at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.uci.networks import ManyNetworks
from vogn.active.natural_gradient import schedule

RATE = 0.01
FIRST_DEVIATION = 0.05


class MeanField:
    """``N(m, diag(s^2))`` by Adam on ``sum of losses + KL``; one draw of the weights per step.

    Args:
        model: the networks, in units of the noise.
        samples: weight samples of predictions.
        precision: of the prior.

    Source: Blundell et al. (2015), "Weight Uncertainty in Neural Networks".
    """

    def __init__(self, model: ManyNetworks, samples: int, precision: float) -> None:
        self.model, self.samples, self.precision = model, samples, precision
        self.means = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
        start = torch.tensor(FIRST_DEVIATION).log()
        self.logs = {name: torch.full_like(p, float(start)).requires_grad_() for name, p in self.means.items()}
        self.adam = torch.optim.Adam([*self.means.values(), *self.logs.values()], lr=RATE)
        self.source = torch.Generator().manual_seed(0)

    def _draw(self) -> dict[str, Tensor]:
        return {
            name: mean + self.logs[name].exp() * torch.randn(mean.shape, generator=self.source)
            for name, mean in self.means.items()
        }

    def update(self, x: Tensor, y: Tensor, steps: int) -> None:
        """Train on."""
        for step in range(steps):
            self.adam.param_groups[0]["lr"] = RATE * schedule(step, steps)
            self.adam.zero_grad()
            loss = 0.5 * (functional_call(self.model, self._draw(), (x,)) - y).square().sum()
            for name, mean in self.means.items():
                square = mean.square() + (2 * self.logs[name]).exp()
                loss = loss + (0.5 * self.precision * square - self.logs[name]).sum()
            loss.backward()
            self.adam.step()

    @torch.no_grad()
    def outputs(self, x: Tensor, seed: int) -> Tensor:
        """``(S, n, R)``."""
        return torch.stack([functional_call(self.model, self._draw(), (x,)) for _ in range(self.samples)])
