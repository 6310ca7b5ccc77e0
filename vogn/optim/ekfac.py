"""EKFAC, and noisy EK-FAC by the flag."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.optim.base import NaturalGradient
from vogn.optim.kfac import clipped_chain, fisher_statistic
from vogn.optim.sample_size import SampleSize
from vogn.structures import EigenKronecker


class EKFAC(NaturalGradient):
    """Eigen-corrected Kronecker curvature: EKFAC, or noisy EK-FAC with ``variational=True``.

    The Kronecker factors give the basis every ``refresh_every`` steps, per-example gradients give the spectrum in that
    basis at every observation; a fresh basis restarts the spectrum at K-FAC's.

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        weight_decay: ``prior_precision / ess``.
        damping: in the step only.
        fisher: ``"mc"`` (sampled labels), ``"empirical"`` or ``"ggn"``.
        ggn_samples: with ``fisher="ggn"``, this many random columns instead of all; ``None`` is exact.
        curvature_examples: measure the curvature on the first so many examples of every batch, which must be in random
            order; ``None`` measures all. Cheaper factors, noisier by the square root of the share.
        factored: ``True`` damps like K-FAC's factors (pi correction) with the free spectrum in their place; ``False``
            adds the shift exactly.
        kfac_approx: weight sharing over positions in the factors of the basis: ``"expand"`` or ``"reduce"``.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        kl_clip: bound on ``lr^2 <update, gradient>`` per step, ``None`` for none.
        momentum, curvature_decay, refresh_every, observe_every, mc_samples, variational, seed, **options: see
            :class:`NaturalGradient`. Momentum is kept on the preconditioned gradient.

    Source: George et al. (2018), "Fast Approximate Natural Gradient Descent in a Kronecker-factored Eigenbasis",
    Algorithm 1; Bae, Zhang and Grosse (2018), "Eigenvalue Corrected Noisy Natural Gradient".
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-2,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        weight_decay: float = 1e-4,
        damping: float = 1e-3,
        momentum: float = 0.9,
        curvature_decay: float = 0.95,
        fisher: Literal["mc", "empirical", "ggn"] = "mc",
        ggn_samples: int | None = None,
        curvature_examples: int | None = None,
        factored: bool = False,
        kfac_approx: Literal["expand", "reduce"] = "expand",
        kl_clip: float | None = 1e-2,
        refresh_every: int = 10,
        observe_every: int = 1,
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(
            params,
            make_selection(structure, EigenKronecker(damping="factored" if factored else "exact", sharing=kfac_approx)),
            fisher_statistic(fisher, ggn_samples, curvature_examples),
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
