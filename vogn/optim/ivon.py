"""IVON: improved variational online Newton."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import Price
from vogn.optim.base import NaturalGradient
from vogn.optim.initial_curvature import InitialCurvature
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import ClipElements, Momentum, Prior, RescaleToInitial, Solve, Step
from vogn.structures import Diagonal


def newton_chain(clip_radius: float, rescale_lr: bool) -> list[Step]:
    """Momentum, prior, solve, then the clip and the rescaling that are wanted."""
    steps: list[Step] = [Momentum(), Prior(), Solve()]
    if clip_radius != math.inf:
        steps.append(ClipElements(clip_radius))
    if rescale_lr:
        steps.append(RescaleToInitial())
    return steps


class IVON(NaturalGradient):
    """Improved variational online Newton: a diagonal Gaussian whose Hessian costs no extra pass.

    ==============  ======================  =============================================
    paper           argument                unit
    ==============  ======================  =============================================
    alpha           ``lr``                  1 (SGD's, after ``rescale_lr``)
    beta_1          ``momentum``            1
    beta_2          ``curvature_decay``     1
    h_0             ``initial_curvature``   loss / parameter^2
    lambda          ``ess``                 examples
    delta           ``weight_decay``        loss / parameter^2
    xi              ``clip_radius``         parameter per unit of ``lr``
    ==============  ======================  =============================================

    Args:
        params: the model, parameters or group dictionaries.
        lr: learning rate.
        ess: effective sample size.
        weight_decay: ``prior_precision / ess``.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        clip_radius: clamp on the elements of the preconditioned gradient; ``inf`` for none.
        rescale_lr: multiply ``lr`` by ``initial_curvature + weight_decay``, so that it compares with SGD's.
        damping, momentum, curvature_decay, initial_curvature, mc_samples, variational, seed, **options: see
            :class:`NaturalGradient`.

    The paper's ``curvature_decay`` is 0.99999, for runs of a million steps: in shorter ones the curvature would stay at
    ``initial_curvature`` and the posterior's width would be an option instead of a result.

    In deterministic mode the Hessian comes from Hutchinson probes, which need the loss to be one of
    :mod:`vogn.likelihoods`.

    Source: Shen et al. (2024), "Variational Learning is Effective for Large Deep Networks", Algorithm 1.
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
        curvature_decay: float = 0.998,
        initial_curvature: InitialCurvature = 1.0,
        clip_radius: float = math.inf,
        rescale_lr: bool = True,
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            make_selection(structure, Diagonal(negative="retract")),
            Price(),
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
            steps=newton_chain(clip_radius, rescale_lr),
            partition="parameter",
            **options,
        )
