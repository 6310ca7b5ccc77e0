"""K-FAC, and noisy K-FAC by the flag."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import GGN, Empirical, MonteCarlo, Statistic
from vogn.optim.base import NaturalGradient
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import ClipKL, Momentum, Prior, Solve, Step
from vogn.structures import Kronecker

FISHERS: dict[str, type[MonteCarlo] | type[Empirical] | type[GGN]] = {
    "mc": MonteCarlo,
    "empirical": Empirical,
    "ggn": GGN,
}


def fisher_statistic(
    fisher: str, ggn_samples: int | None = None, curvature_examples: int | None = None
) -> Statistic:
    """The rows statistic of that name.

    Args:
        fisher: ``"mc"``, ``"empirical"`` or ``"ggn"``.
        ggn_samples: with ``"ggn"``, random combinations of the output Hessian's columns instead of all of them.
        curvature_examples: measure the first so many examples of every batch; ``None`` measures all.

    Raises:
        ValueError: if the name is unknown, or ``ggn_samples`` is given for another statistic.
    """
    if fisher not in FISHERS:
        raise ValueError(f"fisher={fisher!r}: choose one of {', '.join(FISHERS)}")
    if fisher == "ggn":
        return GGN(ggn_samples, curvature_examples)
    if ggn_samples is not None:
        raise ValueError(f"ggn_samples={ggn_samples} goes with fisher='ggn', not with fisher={fisher!r}")
    return FISHERS[fisher](examples=curvature_examples)


def clipped_chain(kl_clip: float | None) -> list[Step]:
    """Prior, solve, KL clip, then momentum on the preconditioned gradient.

    Raises:
        ValueError: if the bound is not positive.
    """
    if kl_clip is not None and not kl_clip > 0:
        raise ValueError(f"kl_clip={kl_clip} must be positive, or None for no clipping")
    clip: list[Step] = [] if kl_clip is None else [ClipKL(kl_clip)]
    return [Prior(), Solve(), *clip, Momentum()]


class KFAC(NaturalGradient):
    """Kronecker-factored curvature: K-FAC with ``variational=False``, noisy K-FAC with ``variational=True``.

    =============  =========================  =====================================
    paper          argument                   unit
    =============  =========================  =====================================
    alpha          ``lr``                     1
    N / lambda     ``ess``                    examples (lambda: KL weight)
    gamma_in       ``weight_decay``           loss / parameter^2
    gamma_ex       ``damping``                loss / parameter^2
    T_stats        ``observe_every``          steps
    T_inv          ``refresh_every``          steps
    kappa          ``kl_clip``                nat
    =============  =========================  =====================================

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        weight_decay: ``prior_precision / ess``.
        damping: in the step only.
        fisher: ``"mc"`` (sampled labels, as in the paper), ``"empirical"`` or ``"ggn"``.
        ggn_samples: with ``fisher="ggn"``, this many random columns instead of all; ``None`` is exact.
        factored: ``True`` damps the factors (pi correction); ``False`` adds the shift to the product exactly.
        curvature_examples: measure the curvature on the first so many examples of every batch, which must be in random
            order; ``None`` measures all. Cheaper factors, noisier by the square root of the share.
        kfac_approx: weight sharing over positions: ``"expand"`` or ``"reduce"``.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        kl_clip: bound on ``lr^2 <update, gradient>`` per step, ``None`` for none.
        momentum, curvature_decay, refresh_every, observe_every, mc_samples, variational, seed, **options: see
            :class:`NaturalGradient`. Momentum is kept on the preconditioned gradient.

    Source: Martens and Grosse (2015), "Optimizing Neural Networks with Kronecker-factored Approximate Curvature";
    Zhang et al. (2018), "Noisy Natural Gradient as Variational Inference", Algorithm 2.
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
        factored: bool = True,
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
            make_selection(structure, Kronecker(damping="factored" if factored else "exact", sharing=kfac_approx)),
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
