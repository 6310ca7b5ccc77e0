"""SLANG: structured, diagonal plus low-rank natural gradients across layers."""

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
from vogn.structures import DiagonalLowRank


class SLANG(NaturalGradient):
    """Diagonal plus low-rank precision over the whole network, from per-example gradients.

    ==============  =======================  =============================================
    paper           argument                 unit
    ==============  =======================  =============================================
    alpha           ``lr``                   1
    beta            ``1 - curvature_decay``  1
    L               ``rank``                 columns
    N               ``ess``                  examples
    lambda / N      ``weight_decay``         loss / parameter^2
    ==============  =======================  =============================================

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        rank: columns of the low-rank part, >= 1.
        weight_decay: ``prior_precision / ess``.
        fisher: ``"empirical"`` as in the paper, ``"mc"`` or ``"ggn"``.
        ggn_samples: with ``fisher="ggn"``, this many random columns instead of all; ``None`` is exact.
        partition: ``"model"`` (across layers, as in the paper) or ``"layer"``.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`. These layers leave the common block.
        anneal_power: divide ``lr`` and ``1 - curvature_decay`` by ``1 + t^p``, as the authors' code does with
            ``p = 0.51``; ``None`` keeps them constant.
        damping, momentum, curvature_decay, initial_curvature, mc_samples, variational, seed, **options: see
            :class:`NaturalGradient`.

    Source: Mishkin et al. (2018), "SLANG: Fast Structured Covariance Approximations for Bayesian Deep Learning with
    Natural Gradient", Algorithm 1.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.2,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        rank: int = 16,
        weight_decay: float = 1e-4,
        damping: float = 1e-3,
        momentum: float = 0.9,
        curvature_decay: float = 0.95,
        fisher: Literal["empirical", "mc", "ggn"] = "empirical",
        ggn_samples: int | None = None,
        partition: Partition = "model",
        anneal_power: float | None = None,
        initial_curvature: InitialCurvature = "first_batch",
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if anneal_power is not None and not anneal_power >= 0:
            raise ValueError(f"anneal_power={anneal_power} is out of range: it must be at least 0, or None")
        super().__init__(
            params,
            make_selection(structure, DiagonalLowRank(rank=rank)),
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
            partition=partition,
            **options,
        )
        self.defaults["anneal_power"] = anneal_power
        for group in self.param_groups:
            group["anneal_power"] = anneal_power
