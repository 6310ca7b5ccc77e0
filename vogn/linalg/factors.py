"""Kronecker factors, contractions and rotations of rows: one line per kind of rows and quantity."""

from __future__ import annotations

import math
from functools import singledispatch
from typing import Literal

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.kernels import kernel
from vogn.kernels.reference import CHUNK_ELEMENTS
from vogn.linalg.rows import AnyRows, GradientRow, IndexedRows, JoinedRows, Rows

Sharing = Literal["expand", "reduce"]


def kronecker_factors(rows: AnyRows, sharing: Sharing) -> tuple[Tensor, Tensor]:
    """Sums over examples of the input factor and of the output factor of K-FAC.

    ``"expand"``: ``A = sum_n mean_t a a^T``, ``S = sum_{k,n,t} g g^T``. ``"reduce"``: ``A = sum_n abar abar^T`` with
    ``abar = mean_t a``, ``S = sum_{k,n} ghat ghat^T`` with ``ghat = sum_t g``. Means run over unmasked positions;
    output gradients of masked positions are zero already.

    Returns:
        ``A (*lead, i, i)`` and ``S (*lead, o, o)``.

    Raises:
        UnsupportedObservationError: for rows without layer inputs and output gradients.

    Source: Eschenhagen, Immer, Turner, Schneider, Hennig 2023, sections 3.1 and 3.2.
    """
    inputs = input_factor(rows, sharing)
    assert isinstance(rows, Rows | IndexedRows)
    outputs = rows.g.sum(-2).flatten(-3, -2) if sharing == "reduce" else rows.g.flatten(-4, -2)
    return inputs, outputs.mT @ outputs


@singledispatch
def input_factor(rows: AnyRows, sharing: Sharing) -> Tensor:
    """The input factor of :func:`kronecker_factors`."""
    raise UnsupportedObservationError(
        f"Kronecker factors need the inputs and output gradients of one layer, got {type(rows).__name__}; "
        "use partition='layer' and a per-example statistic, or a structure that reads whole gradients"
    )


@input_factor.register
def _(rows: Rows, sharing: Sharing) -> Tensor:
    a, positions = rows.a, rows.a.shape[-2]
    weights = None if rows.mask is None else _position_weights(rows.mask, a)
    if sharing == "reduce":
        mean = a.mean(-2) if weights is None else (a * weights.unsqueeze(-1)).sum(-2)
        return mean.mT @ mean
    flat = a.flatten(-3, -2)
    if weights is not None:
        return (a * weights.unsqueeze(-1)).flatten(-3, -2).mT @ flat
    factor = flat.mT @ flat
    return factor if positions == 1 else factor.div_(positions)


@input_factor.register
def _(rows: IndexedRows, sharing: Sharing) -> Tensor:
    mask = torch.ones_like(rows.index, dtype=torch.bool) if rows.mask is None else rows.mask
    weights = _position_weights(mask, rows.g)
    if sharing == "reduce":
        mean = rows.g.new_zeros((rows.count, rows.size)).scatter_add_(1, rows.index, weights)
        return mean.T @ mean
    return rows.g.new_zeros(rows.size).index_add_(0, rows.index.flatten(), weights.flatten()).diag()


def _position_weights(mask: Tensor, like: Tensor) -> Tensor:
    """Weights ``(N, T)`` of the mean over unmasked positions; all zero where every position is masked."""
    weights = mask.to(like.dtype)
    return weights / weights.sum(-1, keepdim=True).clamp_min(1.0)


@singledispatch
def contractions(rows: AnyRows) -> tuple[Tensor, Tensor]:
    """``sum J^T J (*lead, i, i)`` and ``sum J J^T (*lead, o, o)`` over the rows, each row seen as a matrix."""
    raise UnsupportedObservationError(f"no contraction of {type(rows).__name__}")


@contractions.register
def _(rows: Rows) -> tuple[Tensor, Tensor]:
    if rows.a.shape[-2] == 1:
        inputs, outputs = rows.a.squeeze(-2), rows.g.squeeze(-2)
        strength = outputs.square().sum((-3, -1))  # over the columns k: (*lead, N)
        lengths = inputs.square().sum(-1)
        left = (outputs * lengths[..., None, :, None]).flatten(-3, -2)
        return (inputs * strength.unsqueeze(-1)).mT @ inputs, left.mT @ outputs.flatten(-3, -2)
    per_example = rows.columns * math.prod(rows.shape)
    chunk = max(1, CHUNK_ELEMENTS // max(1, per_example))
    parts = [slice(start, start + chunk) for start in range(0, max(1, rows.count), chunk)]
    dense = kernel("row_dense")
    sums = [_contract(dense(rows.a[..., part, :, :], rows.g[..., part, :, :])) for part in parts]
    return _add(sums)


@contractions.register
def _(rows: IndexedRows) -> tuple[Tensor, Tensor]:
    chunk = max(1, CHUNK_ELEMENTS // max(1, rows.columns * rows.g.shape[-1] * rows.size))
    parts = [slice(start, start + chunk) for start in range(0, max(1, rows.count), chunk)]
    return _add([_contract(IndexedRows(rows.index[part], rows.g[:, part], rows.size).dense()) for part in parts])


@contractions.register
def _(rows: GradientRow) -> tuple[Tensor, Tensor]:
    return rows.gradient.mT @ rows.gradient, rows.gradient @ rows.gradient.mT


@contractions.register
def _(rows: JoinedRows) -> tuple[Tensor, Tensor]:
    flat = rows.dense().flatten(2).flatten(0, 1)
    return flat.square().sum().reshape(1, 1), flat.T @ flat


def _contract(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Contractions of explicit rows ``(*lead, K, N, o, i)``."""
    wide, tall = dense.flatten(-4, -2), dense.mT.flatten(-4, -2)
    return wide.mT @ wide, tall.mT @ tall


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
    return Rows(rows.a @ qa.unsqueeze(-3), rows.g @ qs.unsqueeze(-3).unsqueeze(-4)).squares()


@rotated_squares.register
def _(rows: IndexedRows, qs: Tensor, qa: Tensor) -> Tensor:
    return Rows(qa[rows.index], rows.g @ qs).squares()


@rotated_squares.register
def _(rows: GradientRow, qs: Tensor, qa: Tensor) -> Tensor:
    return (qs.mT @ rows.gradient @ qa).square_()


@rotated_squares.register
def _(rows: JoinedRows, qs: Tensor, qa: Tensor) -> Tensor:
    return (qs.mT @ rows.dense() @ qa).square_().sum((0, 1))
