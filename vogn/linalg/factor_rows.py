"""Kronecker factors as the rows they are made of: ``A = U^T U`` and ``S = V^T V`` with one row per input or gradient.

There are never more rows than the factor has columns: larger sets are replaced by the triangle of their QR
decomposition, which has the same factor.
"""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.linalg.factors import Diagonals, Sharing, count_inputs
from vogn.linalg.rows import AnyRows, IndexedRows, Rows


def factor_rows(
    rows: AnyRows, sharing: Sharing, stride: int = 1, diagonal: Diagonals = (False, False)
) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of the input factor and of the output factor of K-FAC, and the number of inputs.

    ``U^T U``, ``V^T V`` and the number are those of :func:`vogn.linalg.factors.kronecker_factors` for ``stride = 1``. A
    larger stride keeps every ``stride``-th position; output gradients grow by ``sqrt(T / kept)`` (their sums by
    ``T / kept``), so that both factors are those of all positions where positions are alike.

    Args:
        rows: rows of a layer.
        sharing: how positions enter; ``"reduce"`` takes the sum over the positions that the stride keeps.
        stride: distance of the positions that are kept, >= 1.
        diagonal: whether only the diagonals of ``V^T V`` and of ``U^T U`` are wanted.

    Returns:
        ``U (*lead, m, i)``, ``V (*lead, m, o)`` and the number of inputs, ``lead``. With ``diagonal`` one row whose
        squares are the diagonal.

    Raises:
        UnsupportedObservationError: for rows without layer inputs and output gradients.
    """
    kept, positions = _strided(rows, stride)
    inputs = input_rows(kept, sharing, diagonal[1])
    left_out = positions / max(1, kept.g.shape[-2])
    if sharing == "reduce":
        outputs = kept.g.sum(-2).flatten(-3, -2) * left_out
    else:
        outputs = kept.g.flatten(-4, -2) * left_out**0.5
    return inputs, _short(outputs, diagonal[0]), count_inputs(kept, sharing)


@singledispatch
def input_rows(rows: AnyRows, sharing: Sharing, diagonal: bool = False) -> Tensor:
    """``U`` of :func:`factor_rows`."""
    raise UnsupportedObservationError(
        f"Kronecker factors need the inputs and output gradients of one layer, got {type(rows).__name__}; "
        "use partition='layer' and a per-example statistic, or a structure that reads whole gradients"
    )


@input_rows.register
def _(rows: Rows, sharing: Sharing, diagonal: bool = False) -> Tensor:
    mask = None if rows.mask is None else rows.mask.to(rows.a.dtype)
    if sharing == "expand":
        kept = rows.a if mask is None else rows.a * mask.unsqueeze(-1)
        return _short(kept.flatten(-3, -2), diagonal)
    if mask is None:
        return _short(rows.a.mean(-2), diagonal)
    weights = mask / mask.sum(-1, keepdim=True).clamp_min(1.0)
    return _short((rows.a * weights.unsqueeze(-1)).sum(-2), diagonal)


@input_rows.register
def _(rows: IndexedRows, sharing: Sharing, diagonal: bool = False) -> Tensor:
    mask = (torch.ones_like(rows.index) if rows.mask is None else rows.mask).to(rows.g.dtype)
    if sharing == "reduce":
        weights = mask / mask.sum(-1, keepdim=True).clamp_min(1.0)
        means = rows.g.new_zeros((rows.count, rows.size)).scatter_add_(1, rows.index, weights)
        return _short(means, diagonal)
    counts = rows.g.new_zeros(rows.size).index_add_(0, rows.index.flatten(), mask.flatten())
    if diagonal:
        return counts.sqrt().unsqueeze(0)
    used = counts.nonzero().squeeze(-1)
    table = rows.g.new_zeros((len(used), rows.size))
    return table.scatter_(1, used.unsqueeze(1), counts[used].sqrt().unsqueeze(1))


def _strided(rows: AnyRows, stride: int) -> tuple[Rows | IndexedRows, int]:
    """The rows at every ``stride``-th position, and the number of positions before."""
    if not isinstance(rows, Rows | IndexedRows):
        input_rows(rows, "expand")  # raises
        raise AssertionError
    positions = rows.g.shape[-2]
    if stride == 1:
        return rows, positions
    mask = None if rows.mask is None else rows.mask[..., ::stride]
    g = rows.g[..., ::stride, :]
    if isinstance(rows, IndexedRows):
        return rows.changed(index=rows.index[:, ::stride], g=g, mask=mask), positions
    return rows.changed(a=rows.a[..., ::stride, :], g=g, mask=mask), positions


def _short(rows: Tensor, diagonal: bool) -> Tensor:
    """At most ``n`` rows with the same ``rows^T rows (n, n)``; one, of its diagonal's roots, with ``diagonal``."""
    if diagonal:
        return torch.linalg.vector_norm(rows, dim=-2, keepdim=True)
    if rows.shape[-2] <= rows.shape[-1]:
        return rows
    return torch.linalg.qr(rows, mode="r").R
