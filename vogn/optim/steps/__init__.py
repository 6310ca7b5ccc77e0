"""Steps: the transforms between a gradient and an update, one file each."""

from __future__ import annotations

from vogn.optim.steps.base import BlockView, Scope, Step, StepContext
from vogn.optim.steps.clip import ClipElements, ClipKL
from vogn.optim.steps.momentum import Momentum
from vogn.optim.steps.prior import Prior
from vogn.optim.steps.rescale import RescaleToInitial
from vogn.optim.steps.solve import Solve

__all__ = [
    "BlockView",
    "ClipElements",
    "ClipKL",
    "Momentum",
    "Prior",
    "RescaleToInitial",
    "Scope",
    "Solve",
    "Step",
    "StepContext",
]
