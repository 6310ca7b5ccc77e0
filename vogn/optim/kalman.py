"""Online natural gradient, which is the extended Kalman filter of a network's weights."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vogn.capture.partition import Partition
from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import GGN
from vogn.optim.base import NaturalGradient
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import KalmanSchedule, Solve
from vogn.structures import Dense


class KalmanNaturalGradient(NaturalGradient):
    """Each step is the update of an extended Kalman filter for static weights, in information form.

    On a linear model with a Gaussian likelihood the posterior is exact after one pass, in any order. The filter sees
    every example once; a second pass counts it twice. The matrix is dense: for small networks, and as a reference.

    ==================  =========================  =====================================
    paper               argument                   unit
    ==================  =========================  =====================================
    P_0^-1              ``ess * weight_decay``     1 / parameter^2
    eta_t               ``lr n / N``               1
    J_t                 curvature ``C``            loss / parameter^2
    1 - mu              ``curvature_decay``        1
    ==================  =========================  =====================================

    Args:
        params: the model.
        lr: factor on the gain; 1 is the filter.
        ess: only its product with ``weight_decay``, the prior precision, matters (``None``: 1); afterwards the group's
            ``ess`` is the number of examples seen and ``weight_decay`` the prior precision over it.
        weight_decay: ``prior_precision / ess``.
        damping: in the step only; 0 is the filter.
        curvature_decay: factor on the evidence so far, per step; 1 forgets nothing. The prior is always kept (in the
            paper it fades as well, and directions without new evidence lose their inverse).
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one.
        variational: ``False`` linearises at the mean, as the filter does; the posterior is there in either mode.
        momentum: must be 0, for the filter has none.
        partition: ``"model"``, or ``"layer"`` for a block-diagonal filter.
        mc_samples, seed, **options: see :class:`NaturalGradient`.

    Source: Ollivier (2018), "Online Natural Gradient as a Kalman Filter", Theorem 2.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1.0,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        weight_decay: float = 1.0,
        damping: float = 0.0,
        momentum: float = 0.0,
        curvature_decay: float = 1.0,
        partition: Partition = "model",
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            make_selection(structure, Dense()),
            GGN(),
            lr=lr,
            ess=ess,
            weight_decay=weight_decay,
            damping=damping,
            momentum=momentum,
            curvature_decay=curvature_decay,
            partition=partition,
            mc_samples=mc_samples,
            variational=variational,
            seed=seed,
            steps=[Solve(), KalmanSchedule()],
            **options,
        )
        if any(group["momentum"] for group in self.param_groups):
            raise ValueError("momentum must be 0: the Kalman filter has none")
        for group in self.param_groups:
            group["examples_seen"], group["prior_precision"] = 0.0, 0.0
        self.defaults |= {"examples_seen": 0.0, "prior_precision": 0.0}
