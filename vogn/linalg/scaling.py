"""Symmetric matrices brought to a trace of about their size, by exact powers of four."""

from __future__ import annotations

import torch
from torch import Tensor

LARGEST_EXPONENT = 100
"""Scales stay within ``2^-100 ... 2^100``, so that neither they nor their inverses leave the range of float32."""


def normalise(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """``(M + M^T) / (2 scale)`` and ``scale``, a power of four near the mean of the diagonal.

    Factorisations square and multiply entries: around 1 nothing under- or overflows on the way. A power of four changes
    no digit, and neither does its root. A matrix whose diagonal is zero or not finite keeps its scale.

    Args:
        matrix: symmetric up to rounding, ``(*batch, n, n)``.

    Returns:
        ``(*batch, n, n)`` and ``(*batch,)``, with ``M = scale * normalised``.
    """
    size = max(1, matrix.shape[-1])
    mean = (matrix.diagonal(dim1=-2, dim2=-1).abs() / size).sum(-1)
    exponent = torch.frexp(mean).exponent.clamp(-LARGEST_EXPONENT, LARGEST_EXPONENT).div(2, rounding_mode="floor") * 2
    scale = torch.ldexp(torch.ones_like(mean), torch.where(mean.isfinite() & (mean > 0), exponent, 0))
    half = matrix * (0.5 / scale)[..., None, None]
    return half + half.mT, scale
