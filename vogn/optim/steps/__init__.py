"""Steps: the transforms between a gradient and an update, one file each."""

from __future__ import annotations

from vogn.optim.steps.base import BlockView, Passed, Scope, Step, StepContext
from vogn.optim.steps.clip import ClipElements, ClipKL
from vogn.optim.steps.critical_phases import CriticalPhases
from vogn.optim.steps.earlier import EarlierPosterior
from vogn.optim.steps.hessian_neumann import HessianNeumann
from vogn.optim.steps.kalman import KalmanSchedule
from vogn.optim.steps.levenberg_marquardt import LevenbergMarquardt
from vogn.optim.steps.momentum import Momentum
from vogn.optim.steps.neumann import Neumann
from vogn.optim.steps.prior import Prior
from vogn.optim.steps.rescale import RescaleToInitial
from vogn.optim.steps.reweight import Reweight
from vogn.optim.steps.solve import PseudoSolve, Solve

__all__ = [
    "BlockView",
    "ClipElements",
    "ClipKL",
    "CriticalPhases",
    "EarlierPosterior",
    "HessianNeumann",
    "KalmanSchedule",
    "LevenbergMarquardt",
    "Momentum",
    "Neumann",
    "Passed",
    "Prior",
    "PseudoSolve",
    "RescaleToInitial",
    "Reweight",
    "Scope",
    "Solve",
    "Step",
    "StepContext",
]
