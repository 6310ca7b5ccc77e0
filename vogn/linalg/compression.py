"""The best few columns of ``decay U U^T + weight J^T J``, with the rows ``J`` left implicit.

The eigenproblem is that of the inner products of all ``r + n`` columns ``X = [sqrt(decay) U, sqrt(weight) J^T]``. The
kept columns are ``X V`` with orthonormal ``V``, never divided by an eigenvalue: what rounding does to the inner
products, whose condition is that of ``X`` squared, turns ``V`` a little. The kept part never exceeds the matrix, and
the diagonal of the rest is formed from the columns themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vogn.linalg import low_rank, tall
from vogn.linalg.column_products import combine, products
from vogn.linalg.eigh import eigh
from vogn.linalg.rows import IndexedRows, Rows


def compress_rows(
    u: Tensor, layers: Sequence[Rows | IndexedRows], *, decay: float, weight: float, rank: int
) -> tuple[Tensor, Tensor]:
    """:func:`vogn.linalg.low_rank.compress` for rows of layers whose flattened blocks make up the ``D`` parameters.

    Nothing of size ``n D`` is formed unless ``n + r > D``.

    Args:
        u: ``U``, ``(D, r)`` with ``r >= rank`` or ``D`` columns.
        layers: rows of the layers in the order of the block, all with the same examples.
        decay: factor on ``U U^T``, >= 0.
        weight: factor on ``J^T J``, >= 0.
        rank: columns to keep, at most ``min(D, r + n)``.

    Returns:
        ``U' (D, rank)`` and ``diag(M) - diag(U' U'^T) (D,)``, clamped at zero, for the matrix ``M`` above.
    """
    r, n = u.shape[1], layers[0].columns * layers[0].count
    if r + n > len(u):
        rows = torch.cat([part.dense().flatten(2).flatten(0, 1) for part in layers], 1)
        return low_rank.compress(u, rows, decay=decay, weight=weight, rank=rank)
    sizes = [math.prod(part.shape) for part in layers]
    left, right = decay**0.5, weight**0.5
    gram = u.new_zeros((r + n, r + n))
    gram[:r, :r] = decay * tall.gram(u)
    squares = []
    for part, columns in zip(layers, u.split(sizes), strict=True):
        found = products(part, columns)
        gram[r:, r:].add_(found.gram, alpha=weight)
        gram[r:, :r].add_(found.cross, alpha=left * right)
        squares.append(found.squares)
    gram[:r, r:] = gram[r:, :r].T
    vectors = eigh(gram)[1][:, -rank:]
    new = tall.times(u, left * vectors[:r])
    c = right * vectors[r:]
    for part, columns in zip(layers, new.split(sizes), strict=True):
        combine(part, c, columns)
    rest = torch.cat(squares).mul_(weight)
    rest.add_(tall.squared_lengths(u), alpha=decay).sub_(tall.squared_lengths(new))
    return new, rest.clamp_min_(0.0)
