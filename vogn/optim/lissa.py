"""LiSSA: the inverse as a power series of curvature-vector products."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.partition import Partition
from vogn.capture.selection import StructureOption, make_selection
from vogn.errors import UnsupportedObservationError
from vogn.optim.base import NaturalGradient
from vogn.optim.initial_curvature import InitialCurvature
from vogn.optim.kfac import fisher_statistic
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import HessianNeumann, Momentum, Neumann, Prior, Step
from vogn.structures import Gram, Identity


class LiSSA(NaturalGradient):
    """Newton-like steps in time linear in the parameters: a truncated Neumann series instead of an inverse.

    By default the products are with the Gauss-Newton matrix or the Fisher of the present batch, row by row, and a
    posterior is sampled exactly, in sample space. The paper's products are with Hessians of single examples:
    ``products="hessian"`` with ``rows_per_term=1``. A Hessian may be indefinite and nothing of it is kept, so this
    needs ``variational=False`` and has no posterior; the step then needs the loss again,
    ``opt.step(vogn.Objective(model, likelihood, inputs, targets))``.

    ==============  ===========================  =====================================
    paper           argument                     unit
    ==============  ===========================  =====================================
    S_1             ``chains``                   1
    S_2             ``depth``                    1
    scale of H      ``1 / scale``                parameter^2 / loss
    N               ``ess``                      examples
    ==============  ===========================  =====================================

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        weight_decay: ``prior_precision / ess``.
        damping: in the step only. Small values need a large ``depth``, of the order of the condition number.
        depth, chains, scale, rows_per_term: see :class:`vogn.optim.steps.Neumann` (``rows_per_term`` is its ``rows``)
            and, with ``products="hessian"``, :class:`vogn.optim.steps.HessianNeumann` (its ``examples``).
        products: ``"rows"``, or ``"hessian"`` for products with the Hessian of the loss, which measure nothing:
            ``fisher``, ``ggn_samples``, ``window``, ``structure``, ``partition`` and ``curvature_decay`` are then of no
            consequence.
        fisher: ``"ggn"``, ``"empirical"`` or ``"mc"``.
        ggn_samples: with ``fisher="ggn"``, this many random columns instead of all; ``None`` is exact.
        window: rows that are held; see :class:`vogn.structures.Gram`. More rows per batch are merged.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one.
        partition: ``"model"`` as in the paper, or ``"layer"``.
        curvature_decay: 0 as in the paper is the present batch alone; a posterior needs more evidence than that.
        momentum, initial_curvature, mc_samples, variational, seed, **options: see
            :class:`NaturalGradient`. Momentum is kept on the solved direction.

    Raises:
        ValueError: if an option is unknown or out of range.
        UnsupportedObservationError: if ``products="hessian"`` is given in variational mode.

    Source: Agarwal, Bullins, Hazan (2017), "Second-Order Stochastic Optimization for Machine Learning in Linear Time",
    Algorithm 1.
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
        momentum: float = 0.9,
        curvature_decay: float = 0.95,
        depth: int = 20,
        chains: int = 1,
        scale: float | None = None,
        rows_per_term: int | None = None,
        products: Literal["rows", "hessian"] = "rows",
        fisher: Literal["ggn", "empirical", "mc"] = "empirical",
        ggn_samples: int | None = None,
        window: int = 256,
        partition: Partition = "model",
        initial_curvature: InitialCurvature = "first_batch",
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if products not in ("rows", "hessian"):
            raise ValueError(f"products={products!r}: choose 'rows' or 'hessian'")
        if products == "hessian" and variational:
            raise UnsupportedObservationError(
                "a Hessian may be indefinite, so that nothing can be sampled; use variational=False, or products='rows'"
            )
        kind, own = (Neumann, Gram(window)) if products == "rows" else (HessianNeumann, Identity())
        series: Step = kind(depth, chains, scale, rows_per_term, seed)
        super().__init__(
            params,
            make_selection(structure, own),
            fisher_statistic(fisher, ggn_samples),
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
            steps=[Prior(), series, Momentum()],
            partition=partition,
            **options,
        )
