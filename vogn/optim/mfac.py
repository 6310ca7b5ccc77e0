"""M-FAC: the empirical Fisher of the last mini-batch gradients, inverted without ever being formed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from vogn.capture.partition import Partition
from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import Gradient
from vogn.optim.base import NaturalGradient
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import Momentum, Prior, Solve
from vogn.structures import GradientWindow
from vogn.structures.gradient_window import InverseForm


class MFAC(NaturalGradient):
    """M-FAC: ``F = lambda I + 1/m sum_j g_j g_j^T`` over a window of gradients, across layers.

    The newest gradient enters the window first and is then preconditioned. ``m`` divides also while the window is not
    full, as in the paper.

    =============  =======================  ===================  =================
    paper          argument                 unit                 paper's default
    =============  =======================  ===================  =================
    m              ``window``               gradients            1024 (pruning: 64 to 1024)
    lambda         ``damping``              loss / parameter^2   1e-5
    alpha          ``lr``                   1                    1e-3
    momentum       ``momentum``             1                    0
    weight decay   ``weight_decay``         loss / parameter^2   task by task
    =============  =======================  ===================  =================

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        window: gradients that are kept, >= 1: as many copies of the parameters in memory. The paper's 1024 is too much
            for most machines; 32 is ours.
        batch_size: examples behind one gradient, all processes together. The window holds *mini-batch* gradients, whose
            second moment is about ``1 / batch_size`` of the Fisher matrix of examples; it is multiplied by this number,
            in the step and in the posterior. 1 gives the paper's step (and a posterior that is as much too wide as
            VAdam's); with the batch size, ``lr`` and ``damping`` times the batch size are the same step
            where there is no ``weight_decay``.
        inverse: ``"cholesky"`` (of a ``window x window`` matrix, the most stable), or the paper's ``"static"`` or
            ``"dynamic"`` recursion; see :class:`vogn.structures.GradientWindow`.
        damping: in the step only.
        weight_decay: ``prior_precision / ess``. It is added to the gradient, but does not enter the window as in the
            authors' code: it is in the shift already.
        partition: ``"model"`` (across layers, as in the paper), ``"layer"`` or ``"parameter"``.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`. These layers leave the common block.
        momentum: kept on the preconditioned gradient, ``v <- momentum v + (1 - momentum) F^-1 g``.
        curvature_decay: factor on the outer products in the window at every step; 1 as in the paper, where all
            gradients in the window count alike.
        mc_samples, variational, seed, **options: see :class:`NaturalGradient`.

    Orthogonally to the window the posterior is the prior: give it a ``weight_decay`` under which networks still work.

    Source: Frantar, Kurtic, Alistarh (2021), "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information".
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
        inverse: InverseForm = "cholesky",
        weight_decay: float = 1e-4,
        damping: float = 1e-5,
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
            make_selection(structure, GradientWindow(window=window, law="fixed", inverse=inverse)),
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
            steps=(Prior(), Solve(), Momentum(debias=False)),
            partition=partition,
            **options,
        )
