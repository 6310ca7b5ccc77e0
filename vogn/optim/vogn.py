"""VOGN: variational online Gauss-Newton."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.optim.base import NaturalGradient
from vogn.optim.initial_curvature import InitialCurvature
from vogn.optim.ivon import newton_chain
from vogn.optim.kfac import fisher_statistic
from vogn.optim.sample_size import SampleSize
from vogn.structures import Diagonal


class VOGN(NaturalGradient):
    """Variational online Gauss-Newton: a diagonal Gaussian from per-example squared gradients.

    ====================  =======================  ======================================
    paper                 argument                 unit
    ====================  =======================  ======================================
    alpha                 ``lr``                   1
    beta_1                ``momentum``             1 (average with weight ``1 - momentum``)
    1 - beta_2            ``curvature_decay``      1
    rho N / tau           ``ess``                  examples
    tau delta / (rho N)   ``weight_decay``         loss / parameter^2
    gamma                 ``damping``              loss / parameter^2
    s                     curvature ``C``          loss / parameter^2
    ====================  =======================  ======================================

    Args:
        params: the model.
        lr: learning rate of the mean.
        ess: effective sample size ``N * augmentation / temperature``.
        weight_decay: ``prior_precision / ess``.
        damping: in the step only.
        clip_radius: bound on the elements of the preconditioned gradient, > 0; ``inf`` for none; not together with
            ``steps``. With one, a small ``damping`` is safe where the curvature is near zero: elements whose
            step is bounded move at ``lr * clip_radius`` per step, as those of Adam move at ``lr``. 0.01 with
            ``damping=0.001`` and ten times the ``lr`` for batches of images.
        fisher: ``"empirical"`` (true labels, no extra pass), ``"mc"`` (sampled labels, one more pass) or ``"ggn"``
            (exact, one more pass per output). For a regression the first is biased: choose one of the others.
        ggn_samples: with ``fisher="ggn"``, this many random columns instead of all; ``None`` is exact.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`.
        norms: ``"point"`` as in the paper (no noise and no prior on norm parameters) or ``"sampled"``.
        momentum, curvature_decay, initial_curvature, mc_samples, variational, seed, **options: see
            :class:`NaturalGradient`.

    Example:
        >>> import torch, vogn
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(3, 2)
        >>> x, y = torch.randn(20, 3), torch.randint(0, 2, (20,))
        >>> opt = vogn.VOGN(model, lr=0.1, ess=len(x), weight_decay=1 / len(x))
        >>> for _ in range(3):
        ...     opt.zero_grad()
        ...     with opt.sampled_params():
        ...         vogn.likelihoods.Categorical()(model(x), y).backward()
        ...     opt.step()
        >>> {name: tuple(draws.shape) for name, draws in opt.posterior().sample(5).items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}

    The damping is kept out of the sampling covariance; the authors' code adds it there as well.

    Source: Khan et al. (2018), Sec. 3, Eq. 9; Osawa et al. (2019), "Practical Deep Learning with Bayesian Principles",
    Sec. 3; Liu et al. (2024), "Sophia", Sec. 2, for the clipping of a diagonal step's elements.
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
        clip_radius: float = math.inf,
        momentum: float = 0.9,
        curvature_decay: float = 0.95,
        fisher: Literal["empirical", "mc", "ggn"] = "empirical",
        ggn_samples: int | None = None,
        norms: Literal["point", "sampled"] = "point",
        initial_curvature: InitialCurvature = "first_batch",
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        if "steps" in options and clip_radius != math.inf:
            raise ValueError(f"clip_radius={clip_radius} is a step of the chain that steps= replaces: give one of them")
        options.setdefault("steps", newton_chain(clip_radius, rescale_lr=False))
        super().__init__(
            params,
            make_selection(structure, Diagonal()),
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
            norms=norms,
            **options,
        )
