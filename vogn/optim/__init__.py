"""Floor 5: the optimizer shell and the named methods."""

from __future__ import annotations

from vogn.optim.base import NaturalGradient
from vogn.optim.coverage import Coverage
from vogn.optim.ekfac import EKFAC
from vogn.optim.evon import EVON
from vogn.optim.fngd import FNGD
from vogn.optim.ggt import GGT
from vogn.optim.gram_gauss_newton import GramGaussNewton
from vogn.optim.hylo import HyLo
from vogn.optim.ivon import IVON
from vogn.optim.kalman import KalmanNaturalGradient
from vogn.optim.kfac import KFAC
from vogn.optim.lissa import LiSSA
from vogn.optim.methods import METHODS, MethodInfo
from vogn.optim.mfac import MFAC
from vogn.optim.seng import SENG
from vogn.optim.skfac import SKFAC
from vogn.optim.slang import SLANG
from vogn.optim.smw import SMW
from vogn.optim.sngd import SNGD
from vogn.optim.tonga import TONGA
from vogn.optim.vadam import VAdam
from vogn.optim.vogn import VOGN
from vogn.optim.von import VON

__all__ = [
    "Coverage",
    "EKFAC",
    "EVON",
    "FNGD",
    "GGT",
    "GramGaussNewton",
    "HyLo",
    "IVON",
    "KFAC",
    "KalmanNaturalGradient",
    "LiSSA",
    "METHODS",
    "MFAC",
    "MethodInfo",
    "NaturalGradient",
    "SENG",
    "SKFAC",
    "SLANG",
    "SMW",
    "SNGD",
    "TONGA",
    "VAdam",
    "VOGN",
    "VON",
]
