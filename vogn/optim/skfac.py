"""SKFAC: K-FAC whose factors are kept and inverted as the rows of a batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.optim.base import NaturalGradient
from vogn.optim.kfac import clipped_chain, fisher_statistic
from vogn.optim.sample_size import SampleSize
from vogn.structures import SwiftKronecker


class SKFAC(NaturalGradient):
    """Swift K-FAC: Kronecker factors of low rank, inverted in the dimension of the rows.

    =============  ==============================  =====================================
    paper          argument                        unit
    =============  ==============================  =====================================
    eta            ``lr``                          1
    m              rows of a batch; ``rank``       examples (directions kept)
    d (damping)    ``damping``                     loss / parameter^2
    SS / RS        ``stride`` / ``kfac_approx``    positions / 1
    N              ``ess``                         examples
    =============  ==============================  =====================================

    The paper's factors are those of one batch: ``curvature_decay=0``, ``refresh_every=1`` and a ``rank`` of at least
    the number of rows. Otherwise they are averaged over the steps, and the best ``rank`` directions of the average are
    kept (:class:`vogn.structures.SwiftKronecker`), which a posterior needs more than a step does.

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        rank: directions of each factor that are kept, >= 1; ``None`` for all of them (K-FAC).
        weight_decay: ``prior_precision / ess``.
        damping: in the step only.
        fisher: ``"empirical"`` (true labels), ``"mc"`` or ``"ggn"``.
        ggn_samples: with ``fisher="ggn"``, this many random columns instead of all; ``None`` is exact.
        factored: ``True`` damps the factors (pi correction) as the paper; ``False`` adds the shift to their product.
        kfac_approx: ``"reduce"`` (the paper's reduce sum: one row per example) or ``"expand"`` (one per position).
        stride: the paper's spatial subsampling: keep every ``stride``-th position.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        kl_clip: bound on ``lr^2 <update, gradient>`` per step, ``None`` for none.
        momentum, curvature_decay, refresh_every, observe_every, mc_samples, variational, seed, **options: see
            :class:`NaturalGradient`. Momentum is kept on the preconditioned gradient.

    Source: Tang, Jiang, Gong, Li, Wu, Yu, Wang, Wang (2021), "SKFAC: Training Neural Networks with Faster
    Kronecker-Factored Approximate Curvature".
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-2,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        rank: int | None = 128,
        weight_decay: float = 1e-4,
        damping: float = 1e-3,
        momentum: float = 0.9,
        curvature_decay: float = 0.95,
        fisher: Literal["mc", "empirical", "ggn"] = "empirical",
        ggn_samples: int | None = None,
        factored: bool = True,
        kfac_approx: Literal["expand", "reduce"] = "reduce",
        stride: int = 1,
        kl_clip: float | None = 1e-2,
        refresh_every: int = 10,
        observe_every: int = 1,
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        own = SwiftKronecker(
            rank=rank, damping="factored" if factored else "exact", sharing=kfac_approx, stride=stride
        )
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
            refresh_every=refresh_every,
            observe_every=observe_every,
            mc_samples=mc_samples,
            variational=variational,
            seed=seed,
            steps=clipped_chain(kl_clip),
            **options,
        )
