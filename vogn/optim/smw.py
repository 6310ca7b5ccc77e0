"""Natural gradient and Gauss-Newton in sample space."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.partition import Partition
from vogn.capture.selection import StructureOption, make_selection
from vogn.optim.base import NaturalGradient
from vogn.optim.initial_curvature import InitialCurvature
from vogn.optim.kfac import fisher_statistic
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import LevenbergMarquardt, Momentum, Prior, Solve, Step
from vogn.structures import Gram


class SMW(NaturalGradient):
    r"""The Fisher or Gauss-Newton matrix of the present batch over the whole network, inverted in sample space.

    The Sherman-Morrison-Woodbury identity turns the ``D x D`` system into one of the size of the batch.

    ==============  =======================  =====================================
    paper           argument                 unit
    ==============  =======================  =====================================
    alpha           ``lr``                   1
    lambda          ``damping``              loss / parameter^2
    \|S_2\|         ``curvature_examples``   examples
    epsilon         ``epsilon``              1
    boost, drop     ``boost``, ``drop``      1
    N               ``ess``                  examples
    ==============  =======================  =====================================

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        weight_decay: ``prior_precision / ess``.
        damping: in the step only; the start of the policy with ``adapt_damping``.
        adapt_damping: Levenberg-Marquardt; the step then needs the loss again, ``opt.step(vogn.Objective(...))``.
        epsilon, boost, drop: see :class:`vogn.optim.steps.LevenbergMarquardt`.
        fisher: ``"empirical"``, ``"mc"`` (natural gradient) or ``"ggn"`` (Gauss-Newton: ``K`` rows per example).
        ggn_samples: with ``fisher="ggn"``, this many random columns instead of all; ``None`` is exact.
        curvature_examples: examples of each batch that are measured; ``None`` measures all.
        window: rows that are held; see :class:`vogn.structures.Gram`. More rows per batch are merged.
        partition: ``"model"`` as in the paper, or ``"layer"``.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one.
        curvature_decay: 0 as in the paper is the present batch alone; a posterior needs more evidence than that.
        momentum, initial_curvature, mc_samples, variational, seed, **options: see :class:`NaturalGradient`. Momentum is
            kept on the solved direction: old gradients lie outside the span of the present rows.

    Memory: ``window x parameters`` numbers.

    Source: Ren and Goldfarb (2019), "Efficient Subsampled Gauss-Newton and Natural Gradient Methods for Training Neural
    Networks", Algorithm 1.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.1,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        weight_decay: float = 1e-4,
        damping: float = 0.1,
        adapt_damping: bool = False,
        epsilon: float = 0.25,
        boost: float = 1.01,
        drop: float = 1.0 / 1.01,
        momentum: float = 0.9,
        curvature_decay: float = 0.95,
        fisher: Literal["empirical", "mc", "ggn"] = "empirical",
        ggn_samples: int | None = None,
        curvature_examples: int | None = None,
        window: int = 256,
        partition: Partition = "model",
        initial_curvature: InitialCurvature = "first_batch",
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        chain: list[Step] = [Prior(), Solve(), Momentum()]
        if adapt_damping:
            chain.append(LevenbergMarquardt(epsilon, boost, drop))
        super().__init__(
            params,
            make_selection(structure, Gram(window)),
            fisher_statistic(fisher, ggn_samples, curvature_examples),
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
            steps=chain,
            partition=partition,
            **options,
        )
