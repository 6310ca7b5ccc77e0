"""VAdam: variational inference by perturbing the weights inside Adam."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import Gradient
from vogn.optim.base import NaturalGradient
from vogn.optim.initial_curvature import InitialCurvature
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import Momentum, Prior, Solve
from vogn.structures import Diagonal


class VAdam(NaturalGradient):
    """VAdam: Adam's second moment as the precision of a diagonal Gaussian.

    The mean moves by ``m_hat / (sqrt(s_hat) + weight_decay + damping)``; weights are sampled with variance
    ``1 / (ess (s + weight_decay))``, without the root and without bias correction. With ``variational=False`` and
    ``weight_decay=0`` this is Adam with ``eps = damping``.

    =================  ====================  ===================
    paper              argument              unit
    =================  ====================  ===================
    alpha              ``lr``                parameter
    gamma_1, gamma_2   ``momentum``, ``curvature_decay``  1
    N                  ``ess``               examples
    lambda / N         ``weight_decay``      loss / parameter^2
    =================  ====================  ===================

    Args:
        params: the model, parameters or group dictionaries.
        lr: learning rate.
        ess: effective sample size.
        weight_decay: ``prior_precision / ess``.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        damping: added to the root, like Adam's ``eps``.
        initial_curvature: start of the second moment; 0 as in Adam.
        momentum, curvature_decay, mc_samples, variational, seed, **options: see :class:`NaturalGradient`.

    The squared mini-batch gradient underestimates the per-example curvature by about the batch size: the posterior is
    wider than VOGN's unless the batch size is 1.

    Source: Khan et al. (2018), "Fast and Scalable Bayesian Deep Learning by Weight-Perturbation in Adam", Algorithm 1.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        weight_decay: float = 1e-4,
        damping: float = 1e-8,
        momentum: float = 0.9,
        curvature_decay: float = 0.999,
        initial_curvature: InitialCurvature = 0.0,
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            make_selection(structure, Diagonal()),
            Gradient(),
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
            steps=(Prior(), Momentum(), Solve(exponent=0.5, debias=True)),
            partition="parameter",
            **options,
        )
