"""Floor 5: the optimizer shell and the named methods."""

from __future__ import annotations

from vogn.optim.base import NaturalGradient
from vogn.optim.coverage import Coverage
from vogn.optim.ekfac import EKFAC
from vogn.optim.evon import EVON
from vogn.optim.ivon import IVON
from vogn.optim.kfac import KFAC
from vogn.optim.methods import METHODS, MethodInfo
from vogn.optim.skfac import SKFAC
from vogn.optim.slang import SLANG
from vogn.optim.sngd import SNGD
from vogn.optim.vadam import VAdam
from vogn.optim.vogn import VOGN
from vogn.optim.von import VON

__all__ = [
    "EKFAC",
    "EVON",
    "IVON",
    "KFAC",
    "METHODS",
    "SKFAC",
    "SLANG",
    "SNGD",
    "VOGN",
    "VON",
    "Coverage",
    "MethodInfo",
    "NaturalGradient",
    "VAdam",
]
