"""Solves with ``diag(d) + U U^T``: partial inner products, one small system in registers, one pass that applies it.

With ``W = diag(d)^-1 U`` the solution is ``diag(d)^-1 (v - U y)`` where ``(I + U^T W) y = W^T v``. No atomic additions:
every program writes the inner products of its rows, and their sum has a fixed order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.kernels.gpu.language import blocks, jit, matrices, power_of_two, tl

BLOCK = 128
"""Rows of ``U`` per piece; not tuned."""
MOST_PARTS = 256
"""Programs per system that share the rows of ``U``."""
MOST_VECTORS = 16
"""Right-hand sides per launch."""


@jit(keep_general=("size", "part"))
def _inner_products(
    d: tl.tensor,
    u: tl.tensor,
    v: tl.tensor,
    grams: tl.tensor,
    products: tl.tensor,
    size: tl.tensor,
    rank: tl.tensor,
    vectors: tl.tensor,
    part: tl.tensor,
    v_batch: tl.tensor,
    WIDE: tl.constexpr,
    RANK: tl.constexpr,
    VECTORS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """``U^T W`` and ``W^T v`` over one part of the rows."""
    batch = tl.program_id(0).to(tl.int64)
    place = batch * tl.num_programs(1) + tl.program_id(1)
    column, vector = tl.arange(0, RANK), tl.arange(0, VECTORS)
    d += batch * size
    u += batch * size * rank
    v += batch * v_batch
    gram = tl.zeros((RANK, RANK), dtype=WIDE)
    product = tl.zeros((RANK, VECTORS), dtype=WIDE)
    first = tl.program_id(1).to(tl.int64) * part
    for start in range(0, part, BLOCK):
        row = first + start + tl.arange(0, BLOCK)
        inside = row < size  # a part is a multiple of BLOCK
        scale = 1.0 / tl.load(d + row, mask=inside, other=1.0).to(WIDE)
        piece = tl.load(
            u + row[:, None] * rank + column[None, :], mask=inside[:, None] & (column[None, :] < rank), other=0.0
        ).to(WIDE)
        scaled = piece * scale[:, None]
        for k in range(rank):
            other = tl.load(u + row * rank + k, mask=inside, other=0.0).to(WIDE)
            sums = tl.sum(scaled * other[:, None], axis=0)
            gram += tl.where(column[None, :] == k, sums[:, None], 0.0)
        for k in range(vectors):
            other = tl.load(v + k * size + row, mask=inside, other=0.0).to(WIDE)
            sums = tl.sum(scaled * other[:, None], axis=0)
            product += tl.where(vector[None, :] == k, sums[:, None], 0.0)
    tl.store(grams + place * RANK * RANK + column[:, None] * RANK + column[None, :], gram)
    tl.store(products + place * RANK * VECTORS + column[:, None] * VECTORS + vector[None, :], product)


@jit(keep_general=("parts",))
def _small_system(
    grams: tl.tensor,
    products: tl.tensor,
    y: tl.tensor,
    parts: tl.tensor,
    WIDE: tl.constexpr,
    RANK: tl.constexpr,
    VECTORS: tl.constexpr,
) -> None:
    """``(I + sum of grams) y = sum of products`` by Gauss-Jordan elimination: no pivots, the matrix is ``>= I``."""
    batch = tl.program_id(0).to(tl.int64)
    column, vector = tl.arange(0, RANK), tl.arange(0, VECTORS)
    matrix = (column[:, None] == column[None, :]).to(WIDE)
    right = tl.zeros((RANK, VECTORS), dtype=WIDE)
    for part in range(parts):
        place = batch * parts + part
        matrix += tl.load(grams + place * RANK * RANK + column[:, None] * RANK + column[None, :])
        right += tl.load(products + place * RANK * VECTORS + column[:, None] * VECTORS + vector[None, :])
    for k in range(RANK):
        pivot_row = tl.sum(tl.where(column[:, None] == k, matrix, 0.0), axis=0)
        pivot = tl.sum(tl.where(column == k, pivot_row, 0.0), axis=0)
        pivot_row = pivot_row / pivot
        right_row = tl.sum(tl.where(column[:, None] == k, right, 0.0), axis=0) / pivot
        factor = tl.sum(tl.where(column[None, :] == k, matrix, 0.0), axis=1)
        matrix = tl.where(column[:, None] == k, pivot_row[None, :], matrix - factor[:, None] * pivot_row[None, :])
        right = tl.where(column[:, None] == k, right_row[None, :], right - factor[:, None] * right_row[None, :])
    tl.store(y + batch * RANK * VECTORS + column[:, None] * VECTORS + vector[None, :], right)


@jit(keep_general=("size",))
def _apply(
    d: tl.tensor,
    u: tl.tensor,
    v: tl.tensor,
    y: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    rank: tl.tensor,
    vectors: tl.tensor,
    v_batch: tl.tensor,
    WIDE: tl.constexpr,
    RANK: tl.constexpr,
    VECTORS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """``diag(d)^-1 (v - U y)``; the rows of ``U`` are read once for all vectors."""
    pieces = tl.cdiv(size, BLOCK)
    batch = (tl.program_id(0) // pieces).to(tl.int64)
    row = (tl.program_id(0) % pieces).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, RANK)
    inside = row < size
    scale = tl.load(d + batch * size + row, mask=inside, other=1.0).to(WIDE)
    piece = tl.load(
        u + batch * size * rank + row[:, None] * rank + column[None, :],
        mask=inside[:, None] & (column[None, :] < rank),
        other=0.0,
    ).to(WIDE)
    for k in range(vectors):
        weights = tl.load(y + batch * RANK * VECTORS + column * VECTORS + k)
        place = batch * v_batch + k * size + row
        rest = tl.load(v + place, mask=inside, other=0.0).to(WIDE) - tl.sum(piece * weights[None, :], axis=1)
        tl.store(out + place, (rest / scale).to(out.dtype.element_ty), mask=inside)


def woodbury_solve(d: Tensor, u: Tensor, v: Tensor, *, wide: bool) -> Tensor:
    """See :func:`vogn.kernels.woodbury_solve`."""
    size, rank, vectors = *u.shape[-2:], v.shape[-2]
    out = torch.empty(v.shape, dtype=v.dtype, device=v.device)
    if not out.numel():
        return out
    d, u, v = d.reshape(-1, size).contiguous(), matrices(u).contiguous(), v.contiguous()
    dtype = torch.float64 if wide else torch.float32
    part = blocks(blocks(size, BLOCK), MOST_PARTS) * BLOCK
    shape, parts = (d.shape[0], blocks(size, part)), blocks(size, part)
    for start in range(0, vectors, MOST_VECTORS):
        count = min(MOST_VECTORS, vectors - start)
        sizes = {"RANK": power_of_two(rank, least=2), "VECTORS": power_of_two(count, least=2)}
        grams = torch.empty((*shape, sizes["RANK"], sizes["RANK"]), dtype=dtype, device=v.device)
        products = torch.empty((*shape, sizes["RANK"], sizes["VECTORS"]), dtype=dtype, device=v.device)
        y = torch.empty((shape[0], sizes["RANK"], sizes["VECTORS"]), dtype=dtype, device=v.device)
        some, into = v.view(-1, vectors, size)[:, start:], out.view(-1, vectors, size)[:, start:]
        options = {**sizes, "WIDE": tl.float64 if wide else tl.float32}
        step = vectors * size
        _inner_products[shape](  # the first axis is the only one without a limit
            d, u, some, grams, products, size, rank, count, part, step, BLOCK=BLOCK, **options
        )
        _small_system[(shape[0],)](grams, products, y, parts, **options)
        _apply[(blocks(size, BLOCK) * shape[0],)](d, u, some, y, into, size, rank, count, step, BLOCK=BLOCK, **options)
    return out
