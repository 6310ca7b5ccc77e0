"""HyLo: the natural gradient in sample space, compressed to few rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.optim.base import NaturalGradient
from vogn.optim.kfac import clipped_chain, fisher_statistic
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import CriticalPhases
from vogn.structures import (
    CompressedGram,
    InterpolativeGram,
    SampledGram,
    SwitchedGram,
    SwitchedInterpolativeGram,
)
from vogn.structures.base import Structure

COMPRESSIONS: dict[str, Callable[[int | float, int, int], Structure]] = {
    "nystrom": lambda rank, window, seed: CompressedGram(rank=rank, window=window),
    "kid": lambda rank, window, seed: InterpolativeGram(rank=rank, window=window),
    "kis": lambda rank, window, seed: SampledGram(rank=rank, window=window, seed=seed),
    "hybrid": lambda rank, window, seed: SwitchedGram(rank=rank, window=window, seed=seed),
    "kid_kis": lambda rank, window, seed: SwitchedInterpolativeGram(rank=rank, window=window, seed=seed),
}
"""Name of a compression to its structure."""

SWITCHED = ("hybrid", "kid_kis")
"""The compressions that are another one in critical phases of training than in the others."""


class HyLo(NaturalGradient):
    """The Fisher of every layer in sample space, where a few rows stand for all.

    ===================  ==========================  ==================================
    paper                argument                    unit
    ===================  ==========================  ==================================
    eta                  ``lr``                      1
    alpha                ``damping``                 loss / parameter^2
    r                    ``rank``                    rows, or a share of them
    KID, KIS, hybrid     ``compression``             -
    epoch                ``switch_every``            steps
    threshold            ``threshold``               1
    update frequency     ``observe_every``           steps
    KL clip              ``kl_clip``                 nat
    N                    ``ess`` (variational)       examples
    ===================  ==========================  ==================================

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        rank: rows that are kept: a whole number, or a share in (0, 1] of the rows at hand. A tenth, as in the paper,
            is enough for redundant gradients only.
        compression: ``"nystrom"`` projects all rows on the kept ones; ``"kid"`` interpolates them, as the paper does;
            ``"kis"`` draws rows by importance. The curvature of ``"kid"`` is not symmetric and cannot be sampled, so it
            needs ``variational=False``; its direction is about as accurate as that of ``"nystrom"``. The paper's hybrid
            is ``"kid_kis"``: KID in critical phases of training, KIS, which is cheaper, in the others; ``"hybrid"`` is
            the same with ``"nystrom"`` for KID, and runs in both modes.
        switch_every: with a hybrid, steps after which it is decided anew whether the phase is critical; the paper's
            number is an epoch, ``len(loader)``.
        threshold: with a hybrid, the relative change of the norm of the gradient, accumulated over ``switch_every``
            steps, from which on a phase is critical: see :class:`vogn.optim.steps.CriticalPhases`.
        weight_decay: ``prior_precision / ess``.
        damping: in the step only; the authors' schedule is a scheduler of the group's entry.
        momentum: of the preconditioned gradient.
        curvature_decay: 0 keeps the rows of one batch, as in the paper.
        fisher: ``"empirical"`` as in the paper, ``"mc"`` or ``"ggn"``.
        ggn_samples: with ``fisher="ggn"``, this many random columns instead of all; ``None`` is exact.
        window: rows of a batch that are compressed; more are merged first.
        kl_clip: bound on ``lr^2 <update, gradient>`` per step, ``None`` for none.
        observe_every: steps between batches that are looked at for curvature.
        mc_samples, variational, seed, **options: see :class:`NaturalGradient`. The seed is also that of the draws.

    Raises:
        ValueError: if the compression is unknown, or the rank, ``kl_clip`` or an option of a hybrid out of range.
        UnsupportedObservationError: if ``compression="kid"`` or ``"kid_kis"`` is given in variational mode.

    The paper compresses on each process before it communicates: here the rows of all processes are compressed together.

    Source: Mu, Soori, Can, Gurbuzbalaban, Dehnavi (2022), "HyLo: a hybrid low-rank natural gradient descent method",
    Algorithm 1.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-2,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        rank: int | float = 0.1,
        compression: Literal["nystrom", "kid", "kis", "hybrid", "kid_kis"] = "nystrom",
        switch_every: int = 500,
        threshold: float = 0.5,
        weight_decay: float = 1e-4,
        damping: float = 3e-2,
        momentum: float = 0.9,
        curvature_decay: float = 0.0,
        fisher: Literal["empirical", "mc", "ggn"] = "empirical",
        ggn_samples: int | None = None,
        window: int = 256,
        kl_clip: float | None = 1e-2,
        observe_every: int = 100,
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if compression not in COMPRESSIONS:
            raise ValueError(f"compression={compression!r}: choose one of {', '.join(COMPRESSIONS)}")
        phases = CriticalPhases(switch_every, threshold)
        super().__init__(
            params,
            make_selection(structure, COMPRESSIONS[compression](rank, window, seed)),
            fisher_statistic(fisher, ggn_samples),
            lr=lr,
            ess=ess,
            weight_decay=weight_decay,
            damping=damping,
            momentum=momentum,
            curvature_decay=curvature_decay,
            observe_every=observe_every,
            mc_samples=mc_samples,
            variational=variational,
            seed=seed,
            steps=[*clipped_chain(kl_clip), *([phases] if compression in SWITCHED else [])],
            **options,
        )
