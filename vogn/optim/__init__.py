"""Floor 5: the optimizer shell and the named methods."""

from __future__ import annotations

from vogn.optim.base import NaturalGradient
from vogn.optim.coverage import Coverage
from vogn.optim.ekfac import EKFAC
from vogn.optim.evon import EVON
from vogn.optim.gram_gauss_newton import GramGaussNewton
from vogn.optim.hylo import HyLo
from vogn.optim.ivon import IVON
from vogn.optim.kalman import KalmanNaturalGradient
from vogn.optim.kfac import KFAC
from vogn.optim.lissa import LiSSA
from vogn.optim.methods import METHODS, MethodInfo
from vogn.optim.seng import SENG
from vogn.optim.slang import SLANG
from vogn.optim.smw import SMW
from vogn.optim.vadam import VAdam
from vogn.optim.vogn import VOGN
from vogn.optim.von import VON

__all__ = [
    "EKFAC",
    "EVON",
    "IVON",
    "KFAC",
    "METHODS",
    "SENG",
    "SLANG",
    "SMW",
    "VOGN",
    "VON",
    "Coverage",
    "GramGaussNewton",
    "KalmanNaturalGradient",
    "LiSSA",
    "HyLo",
    "MethodInfo",
    "NaturalGradient",
    "VAdam",
]
