"""A constant factor that makes learning rates comparable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from vogn.optim.steps.base import Scope, Step, StepContext


@dataclass(frozen=True)
class RescaleToInitial(Step):
    """Multiply by ``initial_curvature + weight_decay``, so that the first steps are those of SGD with the same ``lr``.

    Source: Shen et al. (2024), IVON's ``rescale_lr``.
    """

    SCOPE: ClassVar[Scope] = "element"

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        return [
            update * (float(block.group["initial_curvature"]) + block.group["weight_decay"])
            for update, block in zip(updates, context.blocks, strict=True)
        ]

    def newton_rate(self, group: Mapping[str, Any]) -> float:
        """See :meth:`Step.newton_rate`."""
        return 1.0 / (float(group["initial_curvature"]) + float(group["weight_decay"]))
