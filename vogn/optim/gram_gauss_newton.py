"""Gram-Gauss-Newton: exact Gauss-Newton for over-parameterised regression."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import GGN
from vogn.optim.base import NaturalGradient
from vogn.optim.initial_curvature import InitialCurvature
from vogn.optim.sample_size import SampleSize
from vogn.structures import Gram


class GramGaussNewton(NaturalGradient):
    """Gauss-Newton steps on the batch, through the Gram matrix of its output Jacobian.

    With a Gaussian likelihood of unit noise the step is ``J^T (J J^T / B + damping I)^-1 e / B``: with ``lr = 1`` and a
    damping that goes to zero the minimum-norm solution of the linearised batch.

    ==============  ===========================  =====================================
    paper           argument                     unit
    ==============  ===========================  =====================================
    1 / lambda      ``lr``                       1
    alpha / B       ``damping * lambda``         loss / parameter^2
    N               ``ess``                      examples
    ==============  ===========================  =====================================

    Args:
        params: the model.
        lr: learning rate; 1 is the Gauss-Newton step.
        ess: effective sample size.
        weight_decay: ``prior_precision / ess``.
        damping: in the step only.
        ggn_samples: this many random columns of the output Hessian instead of all; ``None`` is exact.
        window: rows that are held; see :class:`vogn.structures.Gram`. More rows per batch are merged.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one.
        curvature_decay: 0 as in the paper is the present batch alone; a posterior needs more evidence than that.
        momentum, initial_curvature, mc_samples, variational, seed, **options: see
            :class:`NaturalGradient`.

    Source: Cai et al. (2019), "Gram-Gauss-Newton Method: Learning Overparameterized Neural Networks for Regression
    Problems", Eq. 9 and Algorithm 1.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1.0,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        weight_decay: float = 1e-4,
        damping: float = 1e-3,
        momentum: float = 0.0,
        curvature_decay: float = 0.95,
        ggn_samples: int | None = None,
        window: int = 256,
        initial_curvature: InitialCurvature = "first_batch",
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            make_selection(structure, Gram(window)),
            GGN(ggn_samples),
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
            **({"partition": "model"} | options),
        )
