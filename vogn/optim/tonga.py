"""TONGA: online natural gradient from decayed gradients, truncated to few directions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.partition import Partition
from vogn.capture.selection import StructureOption, make_selection
from vogn.capture.statistics import Gradient
from vogn.optim.base import NaturalGradient
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import Momentum, Prior, Solve
from vogn.structures import GradientWindow, UnitGradientWindow
from vogn.structures.base import Structure


class TONGA(NaturalGradient):
    """TONGA: ``(C_t + lambda I)^-1 g_t`` with ``C_t = gamma C_{t-1} + g_t g_t^T``, cut to ``k`` directions at times.

    The newest gradient enters ``C`` first. ``rank`` directions and up to ``truncate_every`` gradients behind them are
    kept; then they are replaced by the best ``rank`` directions of all of them (the first time after the sum of both).

    =============  =======================  ===================  ==================
    paper          argument                 unit                 paper's default
    =============  =======================  ===================  ==================
    gamma          ``curvature_decay``      1                    0.995
    k              ``rank``                 directions           5
    b              ``truncate_every``       steps                50
    lambda         ``damping``              loss / parameter^2   tuned
    =============  =======================  ===================  ==================

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        rank: directions that survive a truncation, >= 1.
        truncate_every: steps from one truncation to the next, >= 1; ``rank + truncate_every`` copies of the parameters
            are in memory.
        normalise: ``True`` divides ``C_t`` by the sum of its weights, ``(1 - gamma^t) / (1 - gamma)``, in the step; the
            posterior always does.
        batch_size: examples behind one gradient, all processes together: ``C`` is multiplied by it, in the step and in
            the posterior; see :class:`vogn.MFAC`. 1 gives the paper's step.
        damping: in the step only.
        weight_decay: ``prior_precision / ess``.
        partition: ``"unit"``, a block for every neuron, as in the paper (:class:`vogn.structures.UnitGradientWindow`);
            ``"layer"``, ``"parameter"`` or ``"model"``.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        momentum: an average of the gradients before they are preconditioned; the paper has none.
        curvature_decay, mc_samples, variational, seed, **options: see :class:`NaturalGradient`.

    Orthogonally to the kept directions the posterior is the prior: give it a ``weight_decay`` under which networks
    still work.

    Source: Le Roux, Manzagol, Bengio (2008), "Topmoumoute Online Natural Gradient Algorithm", section 3.
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 1e-2,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        rank: int = 5,
        truncate_every: int = 50,
        normalise: bool = True,
        batch_size: float = 1.0,
        weight_decay: float = 1e-4,
        damping: float = 1e-2,
        momentum: float = 0.0,
        curvature_decay: float = 0.995,
        partition: Partition | Literal["unit"] = "layer",
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for name, value in (("rank", rank), ("truncate_every", truncate_every)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        own: Structure = GradientWindow(window=rank + truncate_every, law="average", keep=rank)
        if partition == "unit":
            own, partition = UnitGradientWindow(window=rank + truncate_every, keep=rank), "layer"
        super().__init__(
            params,
            make_selection(structure, own),
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
            steps=(Momentum(), Prior(), Solve(total=not normalise)),
            partition=partition,
            **options,
        )
