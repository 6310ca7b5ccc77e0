"""The named methods: one row each. Tests, the command line and the documentation iterate this table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vogn.optim.base import NaturalGradient
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

Mode = Literal["variational", "deterministic"]


@dataclass(frozen=True)
class MethodInfo:
    """One named method.

    Args:
        constructor: the class.
        summary: one line for tables.
        paper: where the method comes from.
        needs_model: whether it must be given the model, not only parameters: it reads layer inputs and output
            gradients, or has a block for each layer.
        sets_groups: whether it sets ``ess``, ``weight_decay`` and the step sizes of its groups itself, at every step.
        modes: the modes that it runs in; all but a few methods run in both.
    """

    constructor: type[NaturalGradient]
    summary: str
    paper: str
    needs_model: bool = True
    sets_groups: bool = False
    modes: tuple[Mode, ...] = ("variational", "deterministic")

    def build(self, model: nn.Module, **options: Any) -> NaturalGradient:
        """The optimizer for ``model``."""
        return self.constructor(model, **options)


METHODS: dict[str, MethodInfo] = {
    "vogn": MethodInfo(VOGN, "diagonal Gaussian, per-example squared gradients", "Khan et al. 2018; Osawa et al. 2019"),
    "von": MethodInfo(VON, "diagonal or dense Gaussian, exact Gauss-Newton", "Khan et al. 2018"),
    "vadam": MethodInfo(VAdam, "diagonal Gaussian, Adam's second moment", "Khan et al. 2018", needs_model=False),
    "ivon": MethodInfo(IVON, "diagonal Gaussian, Hessian from the weight noise", "Shen et al. 2024", needs_model=False),
    "evon": MethodInfo(
        EVON,
        "IVON in the gradient's eigenbasis",
        "Shen et al. 2024 in the basis of Vyas et al. 2024",
        needs_model=False,
    ),
    "kfac": MethodInfo(KFAC, "Kronecker factors; noisy K-FAC", "Martens, Grosse 2015; Zhang et al. 2018"),
    "ekfac": MethodInfo(
        EKFAC, "eigen-corrected Kronecker factors; noisy EK-FAC", "George et al. 2018; Bae et al. 2018"
    ),
    "slang": MethodInfo(SLANG, "diagonal plus low rank across layers", "Mishkin et al. 2018"),
    "smw": MethodInfo(SMW, "natural gradient or Gauss-Newton of the batch, in sample space", "Ren, Goldfarb 2019"),
    "gram_gauss_newton": MethodInfo(GramGaussNewton, "Gauss-Newton for regression, in sample space", "Cai et al. 2019"),
    "lissa": MethodInfo(LiSSA, "power series instead of an inverse", "Agarwal, Bullins, Hazan 2017"),
    "kalman": MethodInfo(
        KalmanNaturalGradient, "dense extended Kalman filter, for small networks", "Ollivier 2018", sets_groups=True
    ),
    "mfac": MethodInfo(
        MFAC, "window of gradients, empirical Fisher", "Frantar, Kurtic, Alistarh 2021", needs_model=False
    ),
    "ggt": MethodInfo(GGT, "window of gradients, full-matrix root", "Agarwal et al. 2019", needs_model=False),
    "tonga": MethodInfo(TONGA, "decayed gradients, few directions", "Le Roux, Manzagol, Bengio 2008"),
    "skfac": MethodInfo(SKFAC, "Kronecker factors of low rank, as rows", "Tang et al. 2021"),
    "sngd": MethodInfo(SNGD, "metric of the layer inputs, no labels", "Liu et al. 2024"),
    "seng": MethodInfo(SENG, "inner products of the rows of each layer, exact or sketched", "Yang et al. 2020"),
    "hylo": MethodInfo(HyLo, "a few rows of each layer that stand for all", "Mu et al. 2022"),
    "fngd": MethodInfo(FNGD, "a coefficient per example instead of an inverse", "Ou et al. 2024"),
}


def sets_groups(optimizer: NaturalGradient) -> bool:
    """Whether the optimizer's method sets ``ess``, ``weight_decay`` and the step sizes of its groups itself."""
    return any(info.sets_groups and info.constructor is type(optimizer) for info in METHODS.values())
