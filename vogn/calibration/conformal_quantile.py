"""The quantile of scores that makes split conformal prediction hold for finitely many examples."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from vogn.errors import RecalibrationWarning


def conformal_quantile(scores: Tensor, level: float) -> Tensor:
    """The ``ceil((n + 1) level)``-th smallest of ``n`` scores along the first dimension.

    A further score, exchangeable with these, is at most that with probability ``level`` at least, and less than
    ``level + 1 / (n + 1)`` if no two are equal. With fewer than ``level / (1 - level)`` scores it is infinite, which a
    warning says.

    Args:
        scores: ``(n, ...)``.
        level: in (0, 1).

    Returns:
        ``(...)``.

    Source: Vovk, Gammerman, Shafer 2005, "Algorithmic learning in a random world"; Lei, G'Sell, Rinaldo, Tibshirani,
    Wasserman 2018, "Distribution-free predictive inference for regression", theorem 2.2.
    """
    count = len(scores)
    rank = math.ceil((count + 1) * level * (1 - 1e-12))
    if rank > count:
        needed = math.ceil(level / (1 - level) * (1 - 1e-12))
        warnings.warn(
            f"{count} examples are too few for level={level:g}: every answer will be included; give at least {needed}",
            RecalibrationWarning,
            stacklevel=3,
        )
        return torch.full(scores.shape[1:], math.inf, dtype=scores.dtype, device=scores.device)
    return scores.kthvalue(rank, dim=0).values
