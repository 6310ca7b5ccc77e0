"""FNGD: natural gradients as weighted sums of the examples' gradients, whose weights are kept after a while."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import nn

from vogn.capture.selection import StructureOption, make_selection
from vogn.optim.base import NaturalGradient
from vogn.optim.sample_size import SampleSize
from vogn.optim.steps import Momentum, Reweight
from vogn.optim.steps.reweight import SHARES, check_no_memory
from vogn.structures import SampleSpace


class FNGD(NaturalGradient):
    """Fast natural gradient descent: one coefficient per example and layer, reused instead of an inverse.

    In every layer the damped natural gradient of a batch is a weighted mean of the examples' gradients ``u_n``::

        s (C + s)^-1 g = (1 / B) sum_n c_n u_n        c = s (s + J J^T / B)^-1 1

    with ``s = weight_decay + damping`` and rows ``u_n`` in ``J``. The factor ``s`` gives ``lr`` its meaning for SGD: a
    growing damping tends to ``c = 1``. The prior's part ``s (C + s)^-1 weight_decay m`` is formed with the same
    inverse. For ``freeze_after`` steps the coefficients are measured (the paper: the first epoch,
    ``freeze_after=len(loader)``); afterwards the stored ones are reused, and a step costs what one of SGD costs: no
    Gram matrix, no inverse.

    Until then the block ``C`` of the last batch is a Gaussian posterior, and ``variational=True`` samples from it.
    Frozen coefficients have no curvature: ``posterior()`` and ``sampled_params()`` of a variational group raise, so a
    variational run leaves ``freeze_after=None``.

    ============  ======================================  ===================
    paper         argument                                unit
    ============  ======================================  ===================
    eta           ``lr``                                  1
    lambda        ``damping`` (plus ``weight_decay``)     loss / parameter^2
    c             the state's ``coefficients``            1 (paper's times s)
    ============  ======================================  ===================

    Args:
        params: the model.
        lr: learning rate.
        ess: effective sample size.
        freeze_after: steps after which the coefficients are kept, >= 1; ``None`` measures at every step.
        share: how a kept coefficient finds its example. ``"index"``: by the place in the data set, which the loop
            hands over, ``with opt.sampled_params(indices=indices):`` (:class:`vogn.data.Indexed`); the data may be
            shuffled and augmented. ``"batch"``: by the position in the epoch of a loader that never shuffles.
            ``"mean"``: all examples of a layer share the mean, which is SGD with a rate per layer. Examples that were
            not measured, and parameters outside layers, have the mean.
        examples: size of the data set, for ``share="index"``: the table of coefficients is then made at once, which
            ``torch.distributed.checkpoint`` needs to load it; ``None`` lets it grow.
        structure: a mapping from name patterns or module types to structures, for layers that shall have another one;
            see :class:`NaturalGradient`. They have no coefficients: after ``freeze_after`` steps they follow the
            gradient.
        weight_decay: ``prior_precision / ess``.
        damping: lambda.
        momentum: on the direction.
        curvature_decay: 0, for coefficients are those of the present batch.
        mc_samples, variational, seed, **options: see :class:`NaturalGradient`.

    Raises:
        ValueError: if ``freeze_after``, ``share``, ``examples`` or ``curvature_decay`` is out of range.

    Example:
        >>> import torch, vogn
        >>> model = torch.nn.Linear(3, 1)
        >>> x, y = torch.randn(20, 3), torch.randn(20, 1)
        >>> opt = vogn.FNGD(model, ess=20, variational=False, freeze_after=2, examples=20)
        >>> for step in range(4):
        ...     indices = torch.arange(10) + 10 * (step % 2)
        ...     opt.zero_grad()
        ...     with opt.sampled_params(indices=indices):
        ...         vogn.likelihoods.Gaussian(noise=0.5)(model(x[indices]), y[indices]).backward()
        ...     opt.step()
        >>> opt.state[model.weight]["memory"]["coefficients"].shape
        torch.Size([20])

    Source: Ou, Zhu, Huang, Liu (2024), "Inverse-Free Fast Natural Gradient Descent Method for Deep Learning".
    """

    def __init__(
        self,
        params: nn.Module | Iterable[Any],
        lr: float = 0.1,
        *,
        ess: SampleSize = None,
        structure: StructureOption = None,
        freeze_after: int | None = None,
        share: Literal["index", "batch", "mean"] = "index",
        examples: int | None = None,
        weight_decay: float = 1e-4,
        damping: float = 1.0,
        momentum: float = 0.9,
        curvature_decay: float = 0.0,
        mc_samples: int = 1,
        variational: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        for name, number in (("freeze_after", freeze_after), ("examples", examples)):
            if number is not None and (int(number) != number or number < 1):
                raise ValueError(f"{name}={number} must be a whole number >= 1, or None")
        if share not in SHARES:
            raise ValueError(f"share={share!r} is unknown; choose one of {', '.join(SHARES)}")
        super().__init__(
            params,
            make_selection(structure, SampleSpace()),
            "empirical",
            lr=lr,
            ess=ess,
            weight_decay=weight_decay,
            damping=damping,
            momentum=momentum,
            curvature_decay=curvature_decay,
            mc_samples=mc_samples,
            variational=variational,
            seed=seed,
            steps=(Reweight(), Momentum()),
            **options,
        )
        check_no_memory(self.param_groups)
        entries = {"freeze_after": freeze_after, "share": share, "examples": examples}
        self.defaults.update(entries)
        for group in self.param_groups:
            for key, value in entries.items():
                group.setdefault(key, value)
