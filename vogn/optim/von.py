"""VON: variational online Newton."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn

from vogn.capture.partition import Partition
from vogn.capture.selection import StructureKey, make_selection
from vogn.capture.statistics import GGN, Price, Statistic
from vogn.optim.base import NaturalGradient
from vogn.optim.initial_curvature import InitialCurvature
from vogn.optim.sample_size import SampleSize
from vogn.structures import Dense, Diagonal, Structure


class VON(NaturalGradient):
    """Variational online Newton: the exact natural-gradient update of a Gaussian.

    ============  ====================  =========================================
    paper         argument              unit
    ============  ====================  =========================================
    alpha         ``lr``                1
    rho, beta     ``1 - curvature_decay``  1
    N             ``ess``               examples
    delta / N     ``weight_decay``      1 / parameter^2 per example
    s, S          curvature ``C``       loss / parameter^2
    ============  ====================  =========================================

    Args:
        params: the model, or parameters if ``hessian="price"`` and ``structure="diagonal"``.
        lr: learning rate; with exact statistics ``lr = 1 - curvature_decay`` is natural-gradient descent.
        ess: effective sample size.
        structure: ``"diagonal"``, or ``"dense"`` (one matrix over the model); or a mapping from name patterns or module
            types to structures for layers that shall not be diagonal, see :class:`NaturalGradient`.
        hessian: ``"ggn"`` (exact Gauss-Newton, one pass per output) or ``"price"`` (from the weight noise; kept
            positive by the retraction of Lin, Schmidt and Khan, 2020; deterministic mode: Hutchinson).
        ggn_samples: random columns instead of all of them; ``None`` is exact.
        weight_decay, damping, momentum, curvature_decay, initial_curvature, mc_samples, variational, seed, **options:
            see :class:`NaturalGradient`.

    Source: Khan et al. (2018), "Fast and Scalable Bayesian Deep Learning by Weight-Perturbation in Adam", Sec. 3,
    Eq. 7-8.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.1,
        *,
        ess: SampleSize = None,
        structure: Literal["diagonal", "dense"] | Mapping[StructureKey, Structure | str] = "diagonal",
        hessian: Literal["ggn", "price"] = "ggn",
        ggn_samples: int | None = None,
        weight_decay: float = 1e-4,
        damping: float = 0.0,
        momentum: float = 0.0,
        curvature_decay: float = 0.9,
        initial_curvature: InitialCurvature | None = None,
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        dense, mapping = structure == "dense", None if isinstance(structure, str) else structure
        if mapping is None and structure not in ("diagonal", "dense"):
            raise ValueError(f"structure={structure!r}: choose 'diagonal' or 'dense', or give a mapping")
        if hessian not in ("ggn", "price"):
            raise ValueError(f"hessian={hessian!r}: choose 'ggn' or 'price'")
        statistic: Statistic = GGN(ggn_samples) if hessian == "ggn" else Price()
        if initial_curvature is None:
            initial_curvature = "first_batch" if hessian == "ggn" else 1.0
        spans_layers: Partition = "parameter" if hessian == "price" else "layer"
        super().__init__(
            params,
            make_selection(mapping, Dense(negative="retract") if dense else Diagonal(negative="retract")),
            statistic,
            lr=lr,
            ess=ess,
            weight_decay=weight_decay,
            damping=damping,
            momentum=momentum,
            curvature_decay=curvature_decay,
            initial_curvature=initial_curvature,
            mc_samples=mc_samples,
            variational=variational,
            seed=seed,
            partition="model" if dense else spans_layers,
            **options,
        )
