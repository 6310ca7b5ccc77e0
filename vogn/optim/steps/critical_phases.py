"""Critical phases of training, told from how fast the norm of the accumulated gradient changes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vogn.optim.steps.base import BlockView, Scope, Step, StepContext

UNKNOWN = -1.0
"""Norm of a period that has not been."""


@dataclass(frozen=True)
class CriticalPhases(Step):
    """Tells the structures whether training is in a critical phase; updates pass through unchanged.

    ``Delta_e`` is the sum of the gradients of all blocks over period ``e``. Period ``e + 1`` is critical if
    ``|(|Delta_e| - |Delta_{e-1}|)| >= threshold |Delta_{e-1}|``; so are the first two, for which there is nothing to
    compare. Structures that care (:meth:`vogn.structures.Structure.with_phase`) measure more carefully in a critical
    phase. The average of the note ``critical`` is the share of critical steps. ``Delta_e`` takes one copy of the
    parameters.

    Args:
        every: steps of a period, >= 1; the paper's are epochs.
        threshold: relative change from which on a phase is critical, >= 0.

    Raises:
        ValueError: if an option is out of range.

    Source: Mu, Soori, Can, Gurbuzbalaban, Dehnavi (2022), "HyLo: a hybrid low-rank natural gradient descent method";
    Agarwal, Wang, Lee, Venkataraman, Papailiopoulos (2021), "Accordion: Adaptive Gradient Communication via Critical
    Learning Regime Identification". That every fall of the learning rate makes a phase critical is not followed: under
    a schedule that always falls, all phases would be.
    """

    every: int = 500
    threshold: float = 0.5

    SCOPE: ClassVar[Scope] = "block"

    def __post_init__(self) -> None:
        if int(self.every) != self.every or self.every < 1:
            raise ValueError(f"every={self.every} must be a whole number of steps >= 1")
        if not self.threshold >= 0.0:
            raise ValueError(f"threshold={self.threshold} must be at least 0")

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        for block in context.blocks:
            if "gradient_sum" not in block.memory:
                self.prepare(block.memory, block.mean, block.group)
            block.memory["gradient_sum"] = block.memory["gradient_sum"] + block.gradient
        if context.blocks:
            context.notes["critical"] = context.blocks[0].memory["critical"].clone()
        if (context.step + 1) % self.every:
            return updates
        squares = [block.memory["gradient_sum"].double().square().sum() for block in context.blocks]
        norm = context.total(squares).sqrt().double().cpu()
        for block in context.blocks:
            self._end(block, norm)
        return updates

    def prepare(self, memory: dict[str, Tensor], mean: Tensor, group: Mapping[str, Any]) -> None:
        """See :meth:`Step.prepare`."""
        memory["gradient_sum"] = torch.zeros_like(mean)
        memory["gradient_norm"] = torch.full((), UNKNOWN, dtype=torch.float64)
        memory["critical"] = torch.ones((), dtype=torch.float64)

    def _end(self, block: BlockView, norm: Tensor) -> None:
        """The period is over: what is the next one?"""
        memory, before = block.memory, float(block.memory["gradient_norm"])
        change = abs(float(norm) - before)
        critical = before == UNKNOWN or change >= self.threshold * before
        memory["gradient_sum"] = torch.zeros_like(memory["gradient_sum"])
        memory["gradient_norm"] = norm
        memory["critical"] = torch.full((), float(critical), dtype=torch.float64)
        block.state = block.structure.with_phase(block.state, critical=critical)
