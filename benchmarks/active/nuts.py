"""The No-U-Turn sampler of Pyro for one network: the reference that the field knows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call

from benchmarks.uci.networks import ManyNetworks

DEPTH = 6
"""At most ``2^6 - 1`` leapfrog steps for a draw."""
FIRST, WARM, KEPT = 500, 20, 50
"""Draws before the first prediction, before each other one, draws that are kept."""


class NoUTurn:
    """A chain with unit masses, for the prior has unit precision; it goes on where it is when there are more labels,
    with the step size that it had.

    Args:
        model: one network, in units of the noise.
        precision: of the prior.

    Source: Hoffman, Gelman (2014), "The No-U-Turn Sampler".
    """

    def __init__(self, model: ManyNetworks, precision: float) -> None:
        if len(model.noise) != 1:
            raise ValueError(f"{len(model.noise)} networks; a chain is that of one")
        self.model, self.precision = model, precision
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.place = torch.cat([p.detach().flatten() for p in model.parameters()])
        self.step = 0.01
        self.kept: Tensor | None = None
        self._numbers = torch.Generator().manual_seed(0)

    def weights(self, flat: Tensor) -> dict[str, Tensor]:
        """By name, from ``(D,)``."""
        parts = flat.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def update(self, x: Tensor, y: Tensor, steps: int) -> None:
        """Draw from the posterior of all labels; ``steps`` is for optimizers."""
        from pyro.infer import MCMC, NUTS

        del steps

        def energy(state: dict[str, Tensor]) -> Tensor:
            misfit = functional_call(self.model, self.weights(state["z"]), (x,)) - y
            return 0.5 * misfit.square().sum() + 0.5 * self.precision * state["z"].square().sum()

        kernel = NUTS(potential_fn=energy, step_size=self.step, adapt_mass_matrix=False, max_tree_depth=DEPTH)
        run = MCMC(
            kernel, num_samples=KEPT, warmup_steps=FIRST if self.kept is None else WARM,
            initial_params={"z": self.place}, disable_progbar=True,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=self._numbers)))
            run.run()
        self.kept = run.get_samples()["z"].detach()
        self.place, self.step = self.kept[-1], float(kernel.step_size)

    @torch.no_grad()
    def outputs(self, x: Tensor, seed: int) -> Tensor:
        """``(S, n, 1)``."""
        assert self.kept is not None
        return torch.stack([functional_call(self.model, self.weights(draw), (x,)) for draw in self.kept])
