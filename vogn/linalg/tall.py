"""Matrices ``U (D, r)`` with many rows and few columns: products that pass over them once, in the processor's cache.

Products of so few columns are slow in every library of linear algebra; rows side by side, ``(D / k, k r)``, keep it
busier than the numbers that nobody asked for cost.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vogn.kernels.reference import chunk_elements

WIDTH = 20
"""In single precision rows are taken side by side, as long as they have no more numbers together."""
MOST = 16
"""Rows side by side are a power of two up to this."""


def pieces(u: Tensor) -> Iterator[slice]:
    """Rows that stay in the cache, a multiple of :data:`MOST` of them but for the last."""
    rows = max(1, chunk_elements(u, cached=True) // (MOST * max(1, u.shape[1]))) * MOST
    for start in range(0, len(u), rows):
        yield slice(start, min(start + rows, len(u)))


def gram(u: Tensor) -> Tensor:
    """``U^T U``, ``(r, r)``; ``U`` contiguous."""
    r = u.shape[1]
    k = _side_by_side(u)
    total, rest = u.new_zeros((k * r, k * r)), u.new_zeros((r, r))
    for part in pieces(u):
        rows = u[part]
        if len(rows) % k:
            rest.addmm_(rows.T, rows)
        else:
            wide = rows.view(len(rows) // k, k * r)
            total.addmm_(wide.T, wide)
    return rest + sum(total[j * r : (j + 1) * r, j * r : (j + 1) * r] for j in range(k))


def times(u: Tensor, w: Tensor) -> Tensor:
    """``U W``, ``(D, s)``, for ``W (r, s)``; ``U`` contiguous."""
    k = _side_by_side(u)
    even = len(u) - len(u) % k
    out = u.new_empty((len(u), w.shape[1]))
    wide, target = u[:even].view(even // k, k * w.shape[0]), out[:even].view(even // k, k * w.shape[1])
    torch.mm(wide, torch.block_diag(*[w] * k), out=target)
    torch.mm(u[even:], w, out=out[even:])
    return out


def squared_lengths(u: Tensor) -> Tensor:
    """``diag(U U^T)``, ``(D,)``."""
    out, ones = u.new_empty(len(u)), u.new_ones(u.shape[1])
    for part in pieces(u):
        torch.mv(u[part].square(), ones, out=out[part])
    return out


def weighted(d: Tensor, u: Tensor, v: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """``U^T diag(d)^-1 U (r, r)`` and ``v diag(d)^-power U (batch, r)`` in double precision, for ``v (batch, D)``."""
    r = u.shape[1]
    square = torch.zeros((r, r), dtype=torch.float64, device=u.device)
    products = torch.zeros((len(v), r), dtype=torch.float64, device=u.device)
    for part in pieces(u):
        wide, inverse = u[part].double(), d[part].double().reciprocal()
        square.addmm_((wide * inverse.unsqueeze(-1)).T, wide)
        products.addmm_(v[:, part] * inverse**power, wide)
    return square, products


def _side_by_side(u: Tensor) -> int:
    """How many rows are taken as one; divides the lengths of all :func:`pieces` but the last."""
    k = 1
    if u.shape[1] and u.dtype == torch.float32 and u.device.type == "cpu":
        while k < MOST and 2 * k * u.shape[1] <= WIDTH:
            k *= 2
    return k
