"""The gradient of a prior that is the posterior of earlier data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vogn.optim.steps.base import Scope, Step, StepContext

PRIOR_MEAN = "prior_mean"
"""The prior's mean in a block's memory; without it the block has no earlier data."""


@dataclass(frozen=True)
class EarlierPosterior(Step):
    """Adds ``strength E (m - m_0) - weight_decay m_0``; follows :class:`Prior`, which adds ``weight_decay m``.

    With strength 1 they are the gradient of the prior ``N(m_0, (ess (E + weight_decay I))^-1)`` at the mean, with ``E``
    the curvature of earlier data in the block's state and ``m_0`` the prior's mean in its memory
    (:func:`vogn.optim.prior_handover.use_as_prior` writes both).
    """

    strength: float = 1.0

    SCOPE: ClassVar[Scope] = "block"

    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """See :meth:`Step.__call__`."""
        out = []
        for update, block in zip(updates, context.blocks, strict=True):
            if PRIOR_MEAN in block.memory:
                centre = block.memory[PRIOR_MEAN]
                moved = block.structure.earlier_product(block.state, block.mean - centre)
                update = update + self.strength * moved - float(block.group["weight_decay"]) * centre
            out.append(update)
        return out
