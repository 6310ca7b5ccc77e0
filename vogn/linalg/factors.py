"""Kronecker factors, contractions and rotations of rows: one line per kind of rows and quantity."""

from __future__ import annotations

from functools import singledispatch
from typing import Literal

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.kernels.reference import chunk_elements
from vogn.linalg.rows import AnyRows, GradientRow, IndexedRows, JoinedRows, Rows
from vogn.linalg.sides import is_diagonal, second_moment, to_basis

Sharing = Literal["expand", "reduce"]
Diagonals = tuple[bool, bool]
"""Whether the output factor, and whether the input factor, is wanted as a diagonal."""


def kronecker_factors(
    rows: AnyRows, sharing: Sharing, diagonal: Diagonals = (False, False)
) -> tuple[Tensor, Tensor, Tensor]:
    """Sums over examples of the input factor and of the output factor of K-FAC.

    ``"expand"`` (positions are further examples): ``A = sum_{n,t} a a^T``, ``S = sum_{k,n,t} g g^T``, and the count is
    the number of pairs ``(n, t)``. ``"reduce"`` (positions are averaged): ``A = sum_n abar abar^T`` with
    ``abar = mean_t a``, ``S = sum_{k,n} ghat ghat^T`` with ``ghat = sum_t g``, and the count is the number of examples
    ``n``. Masked positions take no part; their output gradients are zero already.

    The curvature of the mean loss per loss term is approximated by ``(S / loss terms) (x) (A / count)``. Expand is
    exact for a deep linear network with one loss term per position and a constant output Hessian; reduce is exact for
    one whose output is the mean over the positions.

    Args:
        rows: rows of a layer.
        sharing: how positions enter.
        diagonal: whether only the diagonals of ``S`` and of ``A`` are wanted.

    Returns:
        ``A (*lead, i, i)`` or its diagonal ``(*lead, 1, i)``, ``S (*lead, o, o)`` or ``(*lead, 1, o)``, and the count
        behind ``A``, ``lead``.

    Raises:
        UnsupportedObservationError: for rows without layer inputs and output gradients.

    Source: Eschenhagen, Immer, Turner, Schneider, Hennig 2023, sections 3.1 and 3.2.
    """
    inputs = input_factor(rows, sharing, diagonal[1])
    assert isinstance(rows, Rows | IndexedRows)
    outputs = rows.g.sum(-2).flatten(-3, -2) if sharing == "reduce" else rows.g.flatten(-4, -2)
    return inputs, second_moment(outputs, outputs, diagonal=diagonal[0]), count_inputs(rows, sharing)


def count_inputs(rows: Rows | IndexedRows, sharing: Sharing) -> Tensor:
    """The number of inputs behind the input factor, ``lead``: of unmasked positions, or of examples that have one."""
    kept = rows.g.new_ones(rows.g.shape[-3:-1]) if rows.mask is None else rows.mask.to(rows.g.dtype)
    count = kept.sum((-2, -1)) if sharing == "expand" else kept.amax(-1).sum(-1)
    return count.expand(rows.shape[:-2]).clone()


@singledispatch
def input_factor(rows: AnyRows, sharing: Sharing, diagonal: bool = False) -> Tensor:
    """The input factor of :func:`kronecker_factors`."""
    raise UnsupportedObservationError(
        f"Kronecker factors need the inputs and output gradients of one layer, got {type(rows).__name__}; "
        "use partition='layer' and a per-example statistic, or a structure that reads whole gradients"
    )


@input_factor.register
def _(rows: Rows, sharing: Sharing, diagonal: bool = False) -> Tensor:
    a, mask = rows.a, None if rows.mask is None else rows.mask.to(rows.a.dtype)
    if sharing == "reduce":
        mean = a.mean(-2) if mask is None else (a * _position_weights(mask).unsqueeze(-1)).sum(-2)
        return second_moment(mean, mean, diagonal=diagonal)
    flat = a.flatten(-3, -2)
    kept = flat if mask is None else (a * mask.unsqueeze(-1)).flatten(-3, -2)
    return second_moment(kept, flat, diagonal=diagonal)


@input_factor.register
def _(rows: IndexedRows, sharing: Sharing, diagonal: bool = False) -> Tensor:
    mask = (torch.ones_like(rows.index) if rows.mask is None else rows.mask).to(rows.g.dtype)
    if sharing == "reduce":
        weights = _position_weights(mask)
        if not diagonal:
            mean = rows.g.new_zeros((rows.count, rows.size)).scatter_add_(1, rows.index, weights)
            return mean.T @ mean
        examples = torch.arange(rows.count, device=rows.index.device).unsqueeze(1)
        pairs, inverse = torch.unique(examples * rows.size + rows.index, return_inverse=True)
        means = rows.g.new_zeros(pairs.numel()).index_add_(0, inverse.flatten(), weights.flatten())
        return rows.g.new_zeros(rows.size).index_add_(0, pairs % rows.size, means.square_()).unsqueeze(0)
    counts = rows.g.new_zeros(rows.size).index_add_(0, rows.index.flatten(), mask.flatten())
    return counts.unsqueeze(0) if diagonal else counts.diag()


def _position_weights(mask: Tensor) -> Tensor:
    """Weights ``(N, T)`` of the mean over unmasked positions; all zero where every position is masked."""
    return mask / mask.sum(-1, keepdim=True).clamp_min(1.0)


@singledispatch
def contractions(rows: AnyRows, diagonal: Diagonals = (False, False)) -> tuple[Tensor, Tensor]:
    """``sum J^T J (*lead, i, i)`` and ``sum J J^T (*lead, o, o)`` over the rows, each row seen as a matrix.

    ``diagonal`` says whether only the diagonals of the second and of the first are wanted, ``(*lead, 1, n)``.
    """
    raise UnsupportedObservationError(f"no contraction of {type(rows).__name__}")


@contractions.register
def _(rows: Rows, diagonal: Diagonals = (False, False)) -> tuple[Tensor, Tensor]:
    if rows.a.shape[-2] == 1:
        inputs, outputs = rows.a.squeeze(-2), rows.g.squeeze(-2)
        strength = outputs.square().sum((-3, -1))  # over the columns k: (*lead, N)
        lengths = inputs.square().sum(-1)
        left = (outputs * lengths[..., None, :, None]).flatten(-3, -2)
        return (
            second_moment(inputs * strength.unsqueeze(-1), inputs, diagonal=diagonal[1]),
            second_moment(left, outputs.flatten(-3, -2), diagonal=diagonal[0]),
        )
    return _add([_contract(piece, diagonal) for piece in rows.pieces()])


@contractions.register
def _(rows: IndexedRows, diagonal: Diagonals = (False, False)) -> tuple[Tensor, Tensor]:
    chunk = max(1, chunk_elements(rows.g) // max(1, rows.columns * rows.g.shape[-1] * rows.size))
    parts = [slice(start, start + chunk) for start in range(0, max(1, rows.count), chunk)]
    return _add(
        [_contract(IndexedRows(rows.index[part], rows.g[:, part], rows.size).dense(), diagonal) for part in parts]
    )


@contractions.register
def _(rows: GradientRow, diagonal: Diagonals = (False, False)) -> tuple[Tensor, Tensor]:
    wide, tall = rows.gradient, rows.gradient.mT
    return second_moment(wide, wide, diagonal=diagonal[1]), second_moment(tall, tall, diagonal=diagonal[0])


@contractions.register
def _(rows: JoinedRows, diagonal: Diagonals = (False, False)) -> tuple[Tensor, Tensor]:
    flat = rows.dense().flatten(2).flatten(0, 1)
    return flat.square().sum().reshape(1, 1), second_moment(flat, flat, diagonal=diagonal[0])


def _contract(dense: Tensor, diagonal: Diagonals) -> tuple[Tensor, Tensor]:
    """Contractions of explicit rows ``(*lead, K, N, o, i)``."""
    wide, tall = dense.flatten(-4, -2), dense.mT.flatten(-4, -2)
    return second_moment(wide, wide, diagonal=diagonal[1]), second_moment(tall, tall, diagonal=diagonal[0])


def _add(sums: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Add contractions of several parts of the examples."""
    right, left = sums[0]
    for more_right, more_left in sums[1:]:
        right.add_(more_right)
        left.add_(more_left)
    return right, left


@singledispatch
def rotated_squares(rows: AnyRows, qs: Tensor, qa: Tensor) -> Tensor:
    """``sum (QS^T J QA)^2`` elementwise over the rows, ``(*lead, o, i)``."""
    raise UnsupportedObservationError(f"no rotation of {type(rows).__name__}")


@rotated_squares.register
def _(rows: Rows, qs: Tensor, qa: Tensor) -> Tensor:
    if _turns_rows(rows, qs, qa):
        total = rows.g.new_zeros(rows.shape)
        for piece in rows.pieces():
            total += to_basis(piece.movedim((-4, -3), (0, 1)), qs, qa).square_().sum((0, 1))
        return total
    a = rows.a if is_diagonal(qa) else rows.a @ qa.unsqueeze(-3)
    g = rows.g if is_diagonal(qs) else rows.g @ qs.unsqueeze(-3).unsqueeze(-4)
    return Rows(a, g).squares()


def _turns_rows(rows: Rows, qs: Tensor, qa: Tensor) -> bool:
    """Whether explicit rows are turned with fewer multiply-adds than the pairs behind them."""
    (*_, positions, d_out), d_in = rows.g.shape, rows.shape[-1]
    by_side = [(d_in, is_diagonal(qa), d_out), (d_out, is_diagonal(qs), d_in)]
    pairs = sum(positions * size**2 for size, axes, _ in by_side if not axes)
    turned = sum(size**2 * other for size, axes, other in by_side if not axes)
    return positions > 1 and turned < pairs


@rotated_squares.register
def _(rows: IndexedRows, qs: Tensor, qa: Tensor) -> Tensor:
    g = rows.g if is_diagonal(qs) else rows.g @ qs
    return IndexedRows(rows.index, g, rows.size).squares() if is_diagonal(qa) else Rows(qa[rows.index], g).squares()


@rotated_squares.register
def _(rows: GradientRow, qs: Tensor, qa: Tensor) -> Tensor:
    return to_basis(rows.gradient, qs, qa).square_()


@rotated_squares.register
def _(rows: JoinedRows, qs: Tensor, qa: Tensor) -> Tensor:
    return to_basis(rows.dense(), qs, qa).square_().sum((0, 1))
