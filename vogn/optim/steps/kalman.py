"""Step sizes under which online natural gradient is the extended Kalman filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vogn.optim.steps.base import Step, StepContext


@dataclass(frozen=True)
class KalmanSchedule(Step):
    """Changes nothing about the updates; before each step it sets the group's step sizes, ``ess`` and ``weight_decay``.

    After ``N`` examples the precision is ``N C + prior precision``, so ``ess = N``; a batch of ``n`` more enters ``C``
    with weight ``n / N`` and moves the mean at the rate ``lr n / N``. ``group["examples_seen"]`` holds ``N``. With
    ``curvature_decay`` below 1 the evidence so far is multiplied by it at every step; the prior is kept.

    Source: Ollivier (2018), "Online Natural Gradient as a Kalman Filter", Theorem 2 and section 3 (fading memory).
    """

    def before(self, groups: list[dict[str, Any]], terms: int) -> None:
        """See :meth:`Step.before`."""
        if not terms:
            return
        for group in groups:
            if not group["examples_seen"]:
                ess = group["ess"] if group["ess"] is not None else 1.0
                group["prior_precision"] = float(ess) * group["weight_decay"]
            kept = float(group["curvature_decay"])
            total = kept * group["examples_seen"] + terms
            group.update(examples_seen=total, ess=total, weight_decay=group["prior_precision"] / total)
            group["step_divisor"] = total / terms

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        return updates
