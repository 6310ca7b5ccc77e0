"""Where the curvature starts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch

from vogn.capture.statistics import Statistic
from vogn.distributed import whole

InitialCurvature = float | Literal["first_batch", "auto"]
"""What optimizers take as ``initial_curvature``."""

RELATIVE_STD = 0.1
"""Standard deviation of the first weight samples over the weights' root mean square, where noise must start it all."""


@torch.no_grad()
def automatic(group: Mapping[str, Any], statistics: Sequence[Statistic]) -> float | Literal["first_batch"]:
    """What ``initial_curvature="auto"`` means for a group.

    The first batch, wherever it can be measured without weight noise. Price's estimate learns from the noise that it
    is given: there the curvature starts where that noise is a tenth of the weights,
    ``c = 1 / (ess (0.1 rms)^2)`` with the root mean square of the group's weights of two and more dimensions.

    Args:
        group: a param group with ``"params"`` and ``"ess"``.
        statistics: of the optimizer.

    Raises:
        ValueError: if Price's estimate is asked for and ``ess`` is missing or all weights are zero.
    """
    if all(statistic.NAME != "price" for statistic in statistics):
        return "first_batch"
    if group["ess"] is None:
        raise ValueError(
            "initial_curvature='auto' of the Price statistic follows from ess: pass ess=len(train_set), or a number"
        )
    if not group["params"]:  # a default group may be empty
        return 1.0
    weights = [whole(p.detach()) for p in group["params"] if p.is_floating_point()]
    chosen = [weight for weight in weights if weight.ndim >= 2] or weights
    size = sum(weight.numel() for weight in chosen)
    squares = math.fsum(float(weight.double().square().sum()) for weight in chosen)
    if not squares > 0.0:
        raise ValueError(
            "initial_curvature='auto' of the Price statistic compares its noise with the weights, which are all zero "
            "here: give a number > 0"
        )
    return size / (float(group["ess"]) * RELATIVE_STD**2 * squares)
