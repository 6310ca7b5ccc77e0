"""Limits on the size of an update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vogn.linalg.each import scale_each
from vogn.optim.steps.base import Scope, Step, StepContext


@dataclass(frozen=True)
class ClipKL(Step):
    """Scale all updates by ``min(1, sqrt(kappa / sum_b lr_b^2 <update_b, gradient_b>))``.

    Args:
        kappa: bound, > 0, on ``sum_b lr_b^2 <update_b, gradient_b>``: twice the KL divergence, to second order, between
            the predictions before and after the step.

    Source: Ba, Grosse, Martens (2017), "Distributed Second-Order Optimization using Kronecker-Factored Approximations",
    Sec. 5; Wu et al. (2017), ACKTR.
    """

    kappa: float

    SCOPE: ClassVar[Scope] = "element"

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        largest = max((float(group["lr"]) for group in context.groups), default=0.0)
        if largest == 0.0:
            return updates
        products = [
            _scaled(torch.dot(update.flatten(), block.gradient.flatten()), (block.group["lr"] / largest) ** 2)
            for update, block in zip(updates, context.blocks, strict=True)
        ]
        total = context.total(products)
        # the largest rate stays outside: its square may overflow
        limit = (self.kappa / total.clamp_min(torch.finfo(total.dtype).tiny)).sqrt() / largest
        factor = limit.clamp_max(1.0)
        context.notes["kl_clipped_share"] = (limit < 1.0).to(factor)
        context.notes["kl_clip_factor"] = factor
        return scale_each(updates, factor)


def _scaled(number: Tensor, factor: float) -> Tensor:
    return number if factor == 1.0 else number * factor


@dataclass(frozen=True)
class ClipElements(Step):
    """Clamp every element of the update to ``[-radius, radius]``.

    Args:
        radius: > 0, in units of parameters per unit of ``lr``.

    Raises:
        ValueError: if the radius is not positive.

    Source: Shen et al. (2024), IVON, the clipping radius.
    """

    radius: float

    SCOPE: ClassVar[Scope] = "element"

    def __post_init__(self) -> None:
        if not self.radius > 0:
            raise ValueError(f"clip_radius={self.radius} must be positive, or inf for none")

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        if context.groups and math.isfinite(self.radius):
            clipped = [(update.abs() > self.radius).sum() for update in updates]
            elements = [torch.tensor(update.numel()) for update in updates]
            share = context.total(clipped, [passed.clipped for passed in context.passed]) / context.total(
                elements, [torch.tensor(passed.elements) for passed in context.passed]
            )
            context.notes["elements_clipped_share"] = share
        return [update.clamp(-self.radius, self.radius) for update in updates]
