"""The prior's gradient, taken at the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vogn.linalg.each import add_each
from vogn.optim.steps.base import Scope, Step, StepContext


@dataclass(frozen=True)
class Prior(Step):
    """Adds ``weight_decay * m``: the gradient of an isotropic zero-mean prior, at the mean and not at the sample."""

    SCOPE: ClassVar[Scope] = "element"

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        means = [block.mean for block in context.blocks]
        return add_each(updates, means, [float(block.group["weight_decay"]) for block in context.blocks])

    def linear(self, memory: Mapping[str, Tensor], group: Mapping[str, Any]) -> tuple[float, float]:
        """See :meth:`Step.linear`."""
        return 1.0, float(group["weight_decay"])
