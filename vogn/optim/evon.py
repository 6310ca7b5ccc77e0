"""EVON: IVON in the eigenbasis of the gradient's second moments."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import Gradient, Price
from vogn.optim.base import NaturalGradient
from vogn.optim.initial_curvature import InitialCurvature
from vogn.optim.ivon import newton_chain
from vogn.optim.sample_size import SampleSize
from vogn.structures import EigenKronecker


class EVON(NaturalGradient):
    """IVON in SOAP's eigenbasis: an eigen-corrected Kronecker Gaussian without an extra pass.

    The basis comes from the contractions ``G G^T`` and ``G^T G`` of the mini-batch gradient, the spectrum from Price's
    theorem in that basis. Arguments as in :class:`vogn.IVON`, and:

    Args:
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        basis_decay: weight of the old contractions, in [0, 1].
        refresh_every: steps between eigendecompositions.

    Source: Shen et al. (2024), Algorithm 1, in the basis of Vyas et al. (2024), "SOAP: Improving and Stabilizing
    Shampoo using Adam".
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.1,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        weight_decay: float = 1e-4,
        damping: float = 0.0,
        momentum: float = 0.9,
        curvature_decay: float = 0.999,
        basis_decay: float = 0.95,
        initial_curvature: InitialCurvature = 1.0,
        clip_radius: float = math.inf,
        rescale_lr: bool = True,
        refresh_every: int = 10,
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            make_selection(
                structure,
                EigenKronecker(basis="contraction", restart=False, negative="retract", basis_decay=basis_decay),
            ),
            (Gradient(), Price()),
            lr=lr,
            ess=ess,
            weight_decay=weight_decay,
            damping=damping,
            momentum=momentum,
            curvature_decay=curvature_decay,
            refresh_every=refresh_every,
            initial_curvature=initial_curvature,
            mc_samples=mc_samples,
            variational=variational,
            seed=seed,
            steps=newton_chain(clip_radius, rescale_lr),
            partition="parameter",
            **options,
        )
