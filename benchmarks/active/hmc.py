"""Hamiltonian Monte Carlo for many networks at once: the reference."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.uci.networks import ManyNetworks

LEAPS = 25
ACCEPTANCE = 0.8
FIRST, WARM, KEPT, THIN = 600, 20, 50, 2
"""Trajectories before the first prediction, before each other one, draws that are kept, trajectories between them."""


class HMC:
    """A chain for every network, with a step size of its own; unit masses, for the prior has unit precision.

    Chains go on from where they are when there are more labels. The number of leapfrog steps varies by half around
    :data:`LEAPS`.

    Args:
        model: the networks, in units of the noise.
        precision: of the prior.

    Source: Neal (2011), "MCMC using Hamiltonian dynamics", sections 3.2 and 5.4.2.
    """

    def __init__(self, model: ManyNetworks, precision: float) -> None:
        self.model, self.precision = model, precision
        self.place = {name: p.detach().clone() for name, p in model.named_parameters()}
        self.chains = len(model.noise)
        self.step = torch.full((self.chains,), 0.01)
        self.source = torch.Generator().manual_seed(0)
        self.kept: list[dict[str, Tensor]] = []
        self.accepted = torch.zeros(self.chains)
        self._data: tuple[Tensor, Tensor] | None = None

    def _energy(self, place: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Minus the log joint density of every chain, ``(R,)``, and its gradient."""
        assert self._data is not None
        x, y = self._data
        live = {name: p.detach().requires_grad_() for name, p in place.items()}
        energy = 0.5 * (functional_call(self.model, live, (x,)) - y).square().sum(0)
        for p in live.values():
            energy = energy + 0.5 * self.precision * p.square().flatten(1).sum(1)
        found = torch.autograd.grad(energy.sum(), list(live.values()))
        return energy.detach(), dict(zip(live, found, strict=True))

    def _trajectory(self, adapt: bool) -> None:
        count = int(torch.randint(LEAPS // 2, LEAPS + LEAPS // 2, (1,), generator=self.source))
        momentum = {name: torch.randn(p.shape, generator=self.source) for name, p in self.place.items()}

        def kinetic() -> Tensor:
            return sum((0.5 * m.square().flatten(1).sum(1) for m in momentum.values()), torch.zeros(self.chains))

        def wide(tensor: Tensor) -> Tensor:
            return self.step.view(-1, *([1] * (tensor.ndim - 1)))

        energy, gradient = self._energy(self.place)
        before = energy + kinetic()
        place = dict(self.place)
        for _ in range(count):
            for name in place:
                momentum[name] = momentum[name] - 0.5 * wide(place[name]) * gradient[name]
                place[name] = place[name] + wide(place[name]) * momentum[name]
            energy, gradient = self._energy(place)
            for name in place:
                momentum[name] = momentum[name] - 0.5 * wide(place[name]) * gradient[name]
        chance = (before - energy - kinetic()).exp().clamp_max(1.0).nan_to_num(0.0)
        takes = torch.rand(self.chains, generator=self.source) < chance
        for name, old in self.place.items():
            mask = takes.view(-1, *([1] * (old.ndim - 1)))
            self.place[name] = torch.where(mask, place[name], old)
        self.accepted = 0.98 * self.accepted + 0.02 * chance
        if adapt:
            self.step = self.step * torch.exp(0.1 * (chance - ACCEPTANCE))

    def update(self, x: Tensor, y: Tensor, steps: int) -> None:
        """Move the chains to the posterior of all labels, and draw from it; ``steps`` is for optimizers."""
        del steps
        first = self._data is None
        self._data = (x, y)
        for _ in range(FIRST if first else WARM):
            self._trajectory(adapt=True)
        self.kept = []
        for number in range(KEPT * THIN):
            self._trajectory(adapt=False)
            if number % THIN == THIN - 1:
                self.kept.append(dict(self.place))

    @torch.no_grad()
    def outputs(self, x: Tensor, seed: int) -> Tensor:
        """``(S, n, R)``."""
        return torch.stack([functional_call(self.model, draw, (x,)) for draw in self.kept])
