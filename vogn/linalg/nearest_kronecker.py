"""The Kronecker product nearest to a sum of Kronecker products."""

from __future__ import annotations

import torch
from torch import Tensor


def nearest_kronecker(weights: Tensor, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """``S``, ``A`` with the smallest ``|| sum_t w_t S_t (x) A_t - S (x) A ||`` (Frobenius).

    A sum of ``T`` products, its entries rearranged, is a matrix of rank ``T``, ``sum_t w_t vec(S_t) vec(A_t)^T``, and
    the nearest product is its largest singular pair: exact if all ``S_t``, or all ``A_t``, are multiples of each other.
    With positive weights and positive semi-definite factors the result is positive semi-definite too.

    Args:
        weights: ``(T,)``, of any sign.
        left: ``S_t``, ``(T, *lead, m, o)`` with ``m = o``, or 1 for diagonals.
        right: ``A_t``, ``(T, *lead, n, i)``.

    Returns:
        ``S (*lead, m, o)`` and ``A (*lead, n, i)`` of equal norms, the trace of ``S`` >= 0.

    Source: Van Loan and Pitsianis (1993), "Approximation with Kronecker Products".
    """
    columns = [side.flatten(-2).movedim(0, -1).double() for side in (left, right)]
    (ql, rl), (qr, rr) = (torch.linalg.qr(side) for side in columns)
    u, values, vh = torch.linalg.svd(rl * weights.to(rl) @ rr.mT, full_matrices=False)
    scale = values[..., :1].sqrt()
    s = (ql @ u[..., :1]).squeeze(-1) * scale
    a = (qr @ vh[..., :1, :].mT).squeeze(-1) * scale
    s, a = s.reshape(left.shape[1:]), a.reshape(right.shape[1:])
    trace = s.diagonal(dim1=-2, dim2=-1).sum(-1) if s.shape[-2] == s.shape[-1] else s.sum((-2, -1))
    sign = torch.where(trace < 0, -1.0, 1.0)[..., None, None]
    return (sign * s).to(left), (sign * a).to(right)
