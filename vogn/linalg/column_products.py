"""Per-example gradients against several columns at once: all that a matrix ``U U^T`` of few columns needs of them.

``J (n, D)`` are the rows of a block, ``k`` slow and ``n`` fast, ``U (D, r)`` columns of the flattened block. What is
written down is never longer than a few output columns of all rows, or the rows against one side of the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import singledispatch
from typing import Any, NamedTuple

from torch import Tensor

from vogn.kernels.reference import chunk_elements
from vogn.linalg.patch_rows import PatchRows
from vogn.linalg.rows import IndexedRows, Rows


class Products(NamedTuple):
    """What :func:`products` finds: ``J J^T (n, n)``, ``J U (n, r)`` and ``diag(J^T J) (D,)``."""

    gram: Tensor
    cross: Tensor
    squares: Tensor


@singledispatch
def products(rows: Any, u: Tensor) -> Products:
    """Inner products of the rows with each other, with columns and, elementwise, with themselves.

    Args:
        rows: of one layer.
        u: ``U``, ``(D, r)``.
    """
    raise NotImplementedError(type(rows).__name__)


@singledispatch
def combine(rows: Any, c: Tensor, out: Tensor) -> None:
    """``out += J^T c``, one weight-gradient product per column of ``c``.

    Args:
        rows: of one layer.
        c: ``(n, r)``.
        out: ``(D, r)``, contiguous.
    """
    raise NotImplementedError(type(rows).__name__)


@products.register
def _(rows: Rows, u: Tensor) -> Products:
    if rows.g.shape[-2] == 1 and rows.shape[-1] > 1:
        return Products(rows.gram(), _single_cross(rows, u), rows.squares().flatten())
    return _written_products(rows, u)


@combine.register
def _(rows: Rows, c: Tensor, out: Tensor) -> None:
    if rows.g.shape[-2] == 1:
        _single_combine(rows, c, out)
        return
    table = out.view(-1, *rows.shape[-2:], out.shape[1])
    for part, explicit in written(rows):
        target = table[part]
        if target.is_contiguous():
            target.view(-1, out.shape[1]).addmm_(explicit.T, c)
        else:
            target += (explicit.T @ c).view_as(target)


@products.register
def _(rows: IndexedRows, u: Tensor) -> Products:
    table = u.view(*rows.shape, -1)
    cross = u.new_empty((rows.columns * rows.count, u.shape[1]))
    for k, column in enumerate(cross.T):  # one column: as large as the rows' own output gradients
        column.copy_(rows.matvec(table[..., k]).flatten())
    return Products(rows.gram(), cross, rows.squares().flatten())


@combine.register
def _(rows: IndexedRows, c: Tensor, out: Tensor) -> None:
    table, index = out.view(*rows.shape, -1).transpose(0, 1), rows.index.flatten()
    for k, column in enumerate(c.T):
        weighted = (rows.g * column.view(rows.columns, -1, 1, 1)).sum(0).flatten(0, 1)
        table[..., k].index_add_(0, index, weighted)


# ------------------------------------------------------------------ one position: the pairs do


def _pieces(rows: Rows, columns: int) -> Iterator[slice]:
    """Examples whose rows against ``columns`` columns of one side are not more numbers than a chunk may hold."""
    *lead, _, d_in = rows.shape
    chunk = max(1, chunk_elements(rows.g) // max(1, math.prod(lead) * rows.columns * d_in * columns))
    for start in range(0, rows.count, chunk):
        yield slice(start, min(start + chunk, rows.count))


def _single_cross(rows: Rows, u: Tensor) -> Tensor:
    """``<g_n a_n^T, U>``: first over the outputs, one product for all columns, then over the inputs."""
    *lead, d_out, d_in = rows.shape
    blocks, columns, r = math.prod(lead), rows.columns, u.shape[1]
    table = u.reshape(blocks, d_out, d_in * r)
    a, g = rows.a.reshape(blocks, 1, -1, d_in), rows.g.reshape(blocks, columns, -1, d_out)
    out = u.new_zeros((columns, rows.count, r))
    for part in _pieces(rows, r):
        inputs = a[:, :, part].unsqueeze(-2)  # (blocks, 1, examples, 1, d_in)
        half = (g[:, :, part].flatten(1, 2) @ table).view(blocks, columns, -1, d_in, r)
        out[:, part] = (inputs @ half).squeeze(-2).sum(0)
    return out.flatten(0, 1)


def _single_combine(rows: Rows, c: Tensor, out: Tensor) -> None:
    """``sum_n g_n (a_n c_n)^T`` over all columns in one product."""
    *lead, d_out, d_in = rows.shape
    blocks, columns, r = math.prod(lead), rows.columns, out.shape[1]
    table = out.view(blocks, d_out, d_in * r)
    a, g = rows.a.reshape(blocks, 1, -1, d_in, 1), rows.g.reshape(blocks, columns, -1, d_out)
    weights = c.view(1, columns, -1, 1, r)
    for part in _pieces(rows, r):
        right = (a[:, :, part] * weights[:, :, part]).reshape(blocks, -1, d_in * r)
        table.baddbmm_(g[:, :, part].flatten(1, 2).mT, right)


# ------------------------------------------------------------------ several positions: some output columns at a time


Part = tuple[slice, slice, slice]
"""Some outputs and some inputs of all leading blocks: an index of ``(blocks, d_out, d_in)``."""


@singledispatch
def written(rows: Any) -> Iterator[tuple[Part, Tensor]]:
    """Explicit rows ``(n, blocks x outputs x inputs)`` of a few outputs or inputs at a time.

    A piece holds about as many numbers as stay in the cache, if one output of all rows has no more.
    """
    raise NotImplementedError(type(rows).__name__)


@written.register
def _(rows: Rows) -> Iterator[tuple[Part, Tensor]]:
    *lead, d_out, d_in = rows.shape
    n = rows.columns * rows.count
    chunk = max(1, chunk_elements(rows.g, cached=True) // max(1, n * math.prod(lead) * d_in))
    flat = not lead and rows.g.shape[-2] == d_in == 1
    for start in range(0, d_out, chunk):
        part = slice(start, min(start + chunk, d_out))
        if flat:
            explicit = (rows.g[..., 0, part] * rows.a[..., 0]).flatten(0, 1)
        else:
            explicit = rows.changed(g=rows.g[..., part]).dense().flatten(2).flatten(0, 1)
        yield (slice(None), part, slice(None)), explicit


@written.register
def _(rows: PatchRows) -> Iterator[tuple[Part, Tensor]]:
    *lead, d_out, _ = rows.shape
    n, patches = rows.columns * rows.count, rows.patches
    channels, size = patches.x.shape[1] // patches.groups, math.prod(patches.kernel)
    chunk = max(1, chunk_elements(rows.g, cached=True) // max(1, n * math.prod(lead) * d_out * size))
    for start in range(0, channels, chunk):
        stop = min(start + chunk, channels)
        some = patches.channels(start, stop)
        explicit = Rows(some.matrix(), rows.g).dense().flatten(2).flatten(0, 1)
        yield (slice(None), slice(None), slice(start * size, start * size + some.d_in)), explicit


def _written_products(rows: Rows, u: Tensor) -> Products:
    """Every explicit row serves all three; inner products go through pairs of positions where that is cheaper."""
    *lead, d_out, d_in = rows.shape
    n, positions = rows.columns * rows.count, rows.g.shape[-2]
    pairs = (rows.count * positions) ** 2 * d_in + (n * positions) ** 2 * (d_out + 1)
    by_pairs = pairs < n**2 * d_out * d_in
    gram = rows.gram() if by_pairs else u.new_zeros((n, n))
    cross, squares = u.new_zeros((n, u.shape[1])), u.new_empty((math.prod(lead), d_out, d_in))
    table = u.view(*squares.shape, -1)
    for part, explicit in written(rows):
        cross.addmm_(explicit, table[part].reshape(-1, u.shape[1]))
        if not by_pairs:
            gram.addmm_(explicit, explicit.T)
        target = squares[part]
        target.copy_(explicit.square().sum(0).view_as(target))
    return Products(gram, cross, squares.flatten())
