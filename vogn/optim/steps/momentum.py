"""Momentum: an exponential average of what enters it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vogn.optim.steps.base import Step, StepContext


@dataclass(frozen=True)
class Momentum(Step):
    """``m <- b m + (1 - b) u``, returned divided by its total weight ``1 - b^t`` if ``debias``.

    ``b`` is the group's ``momentum`` in [0, 1). The average carries its own weight, so a changed ``b`` or a skipped
    step stays exactly debiased; what is kept is ``m`` as it is returned.
    """

    debias: bool = True

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        return [
            self._average(update, block.memory, block.group["momentum"])
            for update, block in zip(updates, context.blocks, strict=True)
        ]

    def prepare(self, memory: dict[str, Tensor], mean: Tensor, group: Mapping[str, Any]) -> None:
        """See :meth:`Step.prepare`."""
        if group["momentum"] > 0.0:
            _start(memory, mean)

    def _average(self, update: Tensor, memory: dict[str, Tensor], beta: float) -> Tensor:
        if beta == 0.0 and "momentum" not in memory:
            return update
        if "momentum" not in memory:
            _start(memory, update)
        # new tensors, not in place: a step that is refused later on leaves the old ones untouched
        weight = memory["momentum_weight"] = memory["momentum_weight"].mul(beta).add_(1.0 - beta)
        # m / w with w <- b w + 1 - b follows m / w <- m / w + (1 - b) / w (u - m / w): one pass over the parameters
        average = memory["momentum"] = memory["momentum"].lerp(
            update, (1.0 - beta) / float(weight) if self.debias else 1.0 - beta
        )
        return average


def _start(memory: dict[str, Tensor], like: Tensor) -> None:
    memory["momentum"] = torch.zeros_like(like)
    memory["momentum_weight"] = torch.zeros((), dtype=torch.float64)
