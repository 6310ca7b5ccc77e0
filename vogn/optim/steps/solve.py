"""The preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vogn.errors import in_block
from vogn.optim.steps.base import BlockView, Scope, Step, StepContext


@dataclass(frozen=True)
class Solve(Step):
    """``u <- (C^exponent (+) (weight_decay + damping))^-1 u``.

    Args:
        exponent: 1 for a natural gradient, 1/2 for Adam-like roots.
        debias: divide ``C`` by the total weight of its evidence first (Adam's second bias correction).
    """

    exponent: float = 1.0
    debias: bool = False

    SCOPE: ClassVar[Scope] = "element"

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
        if weight in (0.0, 1.0):  # no evidence yet, or no bias left
            return block.structure.solve(block.state, update, shift, exponent=self.exponent)
        # (k^e C^e + s)^-1 v = k^-e (C^e + s / k^e)^-1 v with k = 1 / weight
        factor = weight**-self.exponent
        return block.structure.solve(block.state, update, shift / factor, exponent=self.exponent) / factor
