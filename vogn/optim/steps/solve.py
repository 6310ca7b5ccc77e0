"""The preconditioner."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vogn.errors import in_block
from vogn.optim.steps.base import BlockView, Step, StepContext


@dataclass(frozen=True)
class Solve(Step):
    """``u <- (C^exponent (+) (weight_decay + damping))^-1 u``.

    Args:
        exponent: 1 for a natural gradient, 1/2 for Adam-like roots.
        debias: divide ``C`` by the total weight of its evidence first (Adam's second bias correction).
        total: multiply ``C`` by its ``"mass"`` first, the sum of the weights in an average, where the structure keeps
            one (:class:`vogn.structures.GradientWindow`): for methods that write a sum where the posterior needs an
            average.
    """

    exponent: float = 1.0
    debias: bool = False
    total: bool = False

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        solved = []
        for update, block in zip(updates, context.blocks, strict=True):
            with in_block(block.name):
                solved.append(self._solve(update, block))
        return solved

    def _solve(self, update: Tensor, block: BlockView) -> Tensor:
        shift = block.group["weight_decay"] + block.group["damping"]
        weight = float(block.memory["curvature_weight"]) if self.debias else 1.0
        if self.total:
            weight /= mass_of(block)
        if weight in (0.0, 1.0):  # no evidence yet, or no bias left
            return block.structure.solve(block.state, update, shift, exponent=self.exponent)
        # (k^e C^e + s)^-1 v = k^-e (C^e + s / k^e)^-1 v with k = 1 / weight
        factor = weight**-self.exponent
        return block.structure.solve(block.state, update, shift / factor, exponent=self.exponent) / factor


@dataclass(frozen=True)
class PseudoSolve(Step):
    """``u <- C^-exponent u`` on the eigenvalues that are at least ``damping``; the rest of the update is dropped.

    Args:
        exponent: 1 or a root, as in :class:`Solve`.
        total: as in :class:`Solve`; the eigenvalues that are compared are those of ``mass C``.
    """

    exponent: float = 1.0
    total: bool = False

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`.

        Raises:
            ValueError: if a block's damping is not positive.
        """
        solved = []
        for update, block in zip(updates, context.blocks, strict=True):
            cut = float(block.group["damping"])
            if not cut > 0:
                raise ValueError(f"block {block.name!r}: a pseudo-inverse cuts at damping={cut:g}: it must be positive")
            mass = mass_of(block) if self.total else 1.0
            with in_block(block.name):
                part = block.structure.pseudo_solve(block.state, update, cut / mass, exponent=self.exponent)
            solved.append(part * mass**-self.exponent)
        return solved


def mass_of(block: BlockView) -> float:
    """The sum of the weights in the average that the block's curvature is; 1 if its structure keeps none."""
    return float(block.state["mass"]) if "mass" in block.state else 1.0
