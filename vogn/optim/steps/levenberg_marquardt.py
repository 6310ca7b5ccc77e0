"""Damping that follows how well the quadratic model predicts the loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vogn.optim.steps.base import Step, StepContext


@dataclass(frozen=True)
class LevenbergMarquardt(Step):
    """Changes nothing about the updates; after the step it changes ``group["damping"]``.

    With ``p`` the change of the weights and ``f`` the loss plus its prior, the quadratic model promises
    ``q(p) = <gradient f, p> + p^T (C + weight_decay) p / 2``. The damping is multiplied by ``boost`` where ``f`` fell
    by less than ``epsilon`` of the promise (or is not finite any more), and by ``drop`` where it fell by more than
    ``1 - epsilon`` of it. Last in the chain; two more forward passes per step. The new damping is a group entry, so
    checkpoints hold it.

    Args:
        epsilon: in (0, 0.5].
        boost: >= 1.
        drop: in (0, 1].
        smallest, largest: bounds on the damping, loss / parameter^2.

    Raises:
        ValueError: if an option is out of range.

    Source: Ren and Goldfarb (2019), "Efficient Subsampled Gauss-Newton and Natural Gradient Methods for Training Neural
    Networks", section 5; Levenberg (1944); Marquardt (1963).
    """

    epsilon: float = 0.25
    boost: float = 1.01
    drop: float = 1.0 / 1.01
    smallest: float = 1e-10
    largest: float = 1e10

    REQUIRES: ClassVar[frozenset[str]] = frozenset({"objective"})

    def __post_init__(self) -> None:
        if not (0.0 < self.epsilon <= 0.5 and self.boost >= 1.0 and 0.0 < self.drop <= 1.0):
            raise ValueError(
                f"epsilon={self.epsilon} must lie in (0, 0.5], boost={self.boost} be at least 1 and drop={self.drop} "
                "lie in (0, 1]"
            )

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        promised = [self._promise(update, k, context) for k, update in enumerate(updates)]
        context.scratch["promised"] = math.fsum(promised)
        context.scratch["before"] = self._value([block.mean for block in context.blocks], context)
        return updates

    def after(self, means: list[Tensor], context: StepContext) -> None:
        """See :meth:`Step.after`."""
        promised = context.scratch["promised"]
        change = self._value(means, context) - context.scratch["before"]
        ratio = change / promised if promised else 1.0
        if not ratio >= self.epsilon:  # NaN too
            factor = self.boost
        else:
            factor = self.drop if ratio > 1.0 - self.epsilon else 1.0
        for group in {id(block.group): block.group for block in context.blocks}.values():
            group["damping"] = min(max(group["damping"] * factor, self.smallest), self.largest)
        context.notes["damping_factor"] = torch.tensor(factor)

    def _promise(self, update: Tensor, k: int, context: StepContext) -> float:
        """``q(p)`` of one block, ``p = -lr update``."""
        block = context.blocks[k]
        decay, rate = float(block.group["weight_decay"]), float(block.group["lr"])
        slope = (update * (block.gradient + decay * block.mean)).sum()
        bend = (update * block.structure.apply(block.state, update, decay)).sum()
        return float(rate * (0.5 * rate * bend - slope))

    def _value(self, means: list[Tensor], context: StepContext) -> float:
        """Loss plus prior; the same on all processes."""
        assert context.objective is not None
        loss = float(context.average(context.objective.loss().double()))
        pairs = zip(means, context.blocks, strict=True)
        return loss + math.fsum(0.5 * float(b.group["weight_decay"]) * float(m.square().sum()) for m, b in pairs)
