"""GGT: full-matrix adaptive regularisation from a window of gradients."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vogn.capture.partition import Partition
from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import Gradient
from vogn.optim.base import NaturalGradient
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import Momentum, Prior, PseudoSolve, Solve
from vogn.structures import GradientWindow


class GGT(NaturalGradient):
    """GGT: ``[(G G^T)^1/2 + eps I]^-1 m`` with ``G = [g_t, beta_2 g_{t-1}, beta_2^2 g_{t-2}, ...]``, across layers.

    The root only preconditions the step. Weights are sampled with the precision ``ess (C + weight_decay)``, where ``C``
    is ``G G^T`` divided by the sum of its weights: the average of the gradients' outer products.

    =============  =======================================  ===================  ==========================
    paper          argument                                 unit                 authors' default
    =============  =======================================  ===================  ==========================
    r              ``window``                               gradients            100 (paper: up to 200)
    beta_1         ``momentum``                             1                    0.9
    beta_2         root of ``curvature_decay``              1                    1 (paper: below 1)
    eps            ``damping``                              loss / parameter     1e-4
    eta            ``lr``                                   parameter            1e-3
    =============  =======================================  ===================  ==========================

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        window: gradients that are kept, >= 1: as many copies of the parameters in memory. 32 is ours.
        batch_size: examples behind one gradient, all processes together: ``G G^T`` is multiplied by it, in the step and
            in the posterior; see :class:`vogn.MFAC`. 1 gives the paper's step; with the batch size, ``lr`` and
            ``damping`` times its root are the same step.
        pinv: ``True`` takes the pseudo-inverse of the root, as the authors' code does: eigenvalues of ``G G^T`` from
            ``damping`` on are inverted without any shift, and what is orthogonal to them is dropped from the step.
        damping: added to the root, in the step only; with ``pinv``, where the eigenvalues are cut.
        weight_decay: ``prior_precision / ess``.
        curvature_decay: weight of an outer product by the step, ``beta_2^2``.
        partition: ``"model"`` (across layers, as in the paper), ``"layer"`` or ``"parameter"``.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`. These layers leave the common block.
        momentum: an average of the gradients with weights that sum to one, before the root.
        mc_samples, variational, seed, **options: see :class:`NaturalGradient`.

    Orthogonally to the window the posterior is the prior: give it a ``weight_decay`` under which networks still work.

    Source: Agarwal, Bullins, Chen, Hazan, Singh, Zhang, Zhang (2019), "Efficient Full-Matrix Adaptive Regularization",
    Algorithm 1.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-3,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        window: int = 32,
        batch_size: float = 1.0,
        pinv: bool = False,
        weight_decay: float = 1e-4,
        damping: float = 1e-4,
        momentum: float = 0.9,
        curvature_decay: float = 1.0,
        partition: Partition = "model",
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        root = PseudoSolve(exponent=0.5, total=True) if pinv else Solve(exponent=0.5, total=True)
        super().__init__(
            params,
            make_selection(structure, GradientWindow(window=window, law="average")),
            Gradient(batch_size),
            lr=lr,
            ess=ess,
            weight_decay=weight_decay,
            damping=damping,
            momentum=momentum,
            curvature_decay=curvature_decay,
            mc_samples=mc_samples,
            variational=variational,
            seed=seed,
            steps=(Momentum(), Prior(), root),
            partition=partition,
            **options,
        )
