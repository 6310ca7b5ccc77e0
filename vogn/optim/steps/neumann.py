"""An inverse by a truncated power series."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError, in_block
from vogn.linalg.noise import generator
from vogn.optim.steps.base import BlockView, Step, StepContext

GROWTH = 10.0
"""Terms of a converging series shrink; parts of the rows may make single terms grow, but not by this factor."""


@dataclass(frozen=True)
class Neumann(Step):
    """``u <- (1 / c) sum_{j=0}^{depth} (I - H_j / c) ... (I - H_1 / c) u`` with ``H = C + (weight_decay + damping) I``.

    In the limit of ``depth`` this is ``H^-1 u``. With ``rows`` every term sees another random part of the curvature's
    rows (``H_j``), which leaves the mean over ``chains`` unbiased for the truncated series; without, ``H_j = H``.

    Args:
        depth: terms after the first, >= 0 (``S_2``).
        chains: series that are averaged, >= 1 (``S_1``); more than one only changes something with ``rows``.
        scale: ``c``, at least the largest eigenvalue of every ``H_j``; ``None`` asks the structure for the largest
            eigenvalue of ``H``, and with ``rows`` multiplies it by what bounds all parts, the number of rows over
            ``rows``: safe, and slow. A smaller ``scale`` converges faster where examples resemble each other.
        rows: rows of the curvature per term; ``None`` takes all.
        seed: of the parts.

    Raises:
        ValueError: if an option is out of range.
        NotPositiveDefiniteError: in a step, naming the block, if the series diverges.

    Source: Agarwal, Bullins, Hazan (2017), "Second-Order Stochastic Optimization for Machine Learning in Linear Time",
    Algorithm 1.
    """

    depth: int = 20
    chains: int = 1
    scale: float | None = None
    rows: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.depth < 0 or self.chains < 1 or (self.rows is not None and self.rows < 1):
            raise ValueError(
                f"depth={self.depth} must be at least 0, chains={self.chains} at least 1 and rows={self.rows} at least "
                "1 or None"
            )
        if self.scale is not None and not self.scale > 0:
            raise ValueError(f"scale={self.scale} must be positive, or None for the largest eigenvalue")

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        solved = []
        for update, block in zip(updates, context.blocks, strict=True):
            with in_block(block.name):
                solved.append(self._solve(update, block, context.step))
        return solved

    def _solve(self, v: Tensor, block: BlockView, step: int) -> Tensor:
        shift = block.group["weight_decay"] + block.group["damping"]
        scale = self.scale
        if scale is None:
            scale = float(block.structure.eigenvalue_bounds(block.state, shift)[1])
            if self.rows is not None:
                scale *= block.structure.part(block.state, self.rows, torch.Generator(v.device))[1]
        if not scale > 0:
            raise NotPositiveDefiniteError("the curvature is 0; set weight_decay, damping or initial_curvature above 0")
        total = torch.zeros_like(v)
        for chain in range(self.chains):
            source = generator(
                seed=self.seed, stream="neumann", step=step, sample=chain, name=block.name, device=v.device
            )
            total += self._series(v, block, shift, scale, source)
        return total / (self.chains * scale)

    def _series(self, v: Tensor, block: BlockView, shift: float, scale: float, source: torch.Generator) -> Tensor:
        term, total = v, v.clone()
        for _ in range(self.depth):
            state = block.state if self.rows is None else block.structure.part(block.state, self.rows, source)[0]
            term = term - block.structure.apply(state, term, shift) / scale
            total += term
        if not float(term.norm()) <= GROWTH * float(v.norm()):
            raise NotPositiveDefiniteError(
                f"the Neumann series diverges: its last term is {float(term.norm()):.3g} after {float(v.norm()):.3g}, "
                f"since scale={scale:.3g} is below half the largest eigenvalue; raise scale, or leave it out"
            )
        return total
