"""Momentum: an exponential average of what enters it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from vogn.linalg.each import lerp_each
from vogn.optim.steps.base import Scope, Step, StepContext


@dataclass(frozen=True)
class Momentum(Step):
    """``m <- b m + (1 - b) u``, returned divided by its total weight ``1 - b^t`` if ``debias``.

    ``b`` is the group's ``momentum`` in [0, 1). The average carries its own weight, so a changed ``b`` or a skipped
    step stays exactly debiased; what is kept is ``m`` as it is returned.
    """

    debias: bool = True

    SCOPE: ClassVar[Scope] = "element"

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        averaged = [
            k for k, block in enumerate(context.blocks) if self.averages(block.memory, block.group)
        ]
        memories = [context.blocks[k].memory for k in averaged]
        shares = [
            self.share(memory, updates[k], context.blocks[k].group)
            for k, memory in zip(averaged, memories, strict=True)
        ]
        # m / w with w <- b w + 1 - b follows m / w <- m / w + (1 - b) / w (u - m / w): one pass over the parameters
        new = lerp_each([memory["momentum"] for memory in memories], [updates[k] for k in averaged], shares)
        out = list(updates)
        for k, memory, average in zip(averaged, memories, new, strict=True):
            out[k] = memory["momentum"] = average
        return out

    def prepare(self, memory: dict[str, Tensor], mean: Tensor, group: Mapping[str, Any]) -> None:
        """See :meth:`Step.prepare`."""
        if group["momentum"] > 0.0:
            _start(memory, mean)

    def averages(self, memory: Mapping[str, Tensor], group: Mapping[str, Any]) -> bool:
        """Whether an average is kept: there is a momentum, or has been."""
        return bool(group["momentum"]) or "momentum" in memory

    def share(self, memory: dict[str, Tensor], update: Tensor, group: Mapping[str, Any]) -> float:
        """The update's share in the average that is returned; counts its weight in the memory."""
        beta = group["momentum"]
        if "momentum" not in memory:
            _start(memory, update)
        # new tensors, not in place: a step that is refused later on leaves the old ones untouched
        weight = float(memory["momentum_weight"]) * beta + (1.0 - beta)
        memory["momentum_weight"] = torch.tensor(weight, dtype=torch.float64)
        return (1.0 - beta) / weight if self.debias else 1.0 - beta


def _start(memory: dict[str, Tensor], like: Tensor) -> None:
    memory["momentum"] = torch.zeros_like(like)
    memory["momentum_weight"] = torch.zeros((), dtype=torch.float64)
