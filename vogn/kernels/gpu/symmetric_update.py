"""Batched symmetric rank-k update with decay: the lower tiles are computed, the upper ones are their mirror."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.kernels.gpu.language import autotune, blocks, dot_precision, jit, matrices, tl
from vogn.kernels.gpu.tiles import lower_tile, lower_tiles, store_mirrored

SPACE = (
    {"BLOCK": 32, "BLOCK_N": 32, "warps": 4, "stages": 3},
    {"BLOCK": 64, "BLOCK_N": 16, "warps": 4, "stages": 3},
    {"BLOCK": 128, "BLOCK_N": 16, "warps": 8, "stages": 3},
)
"""Tile sizes tried once per size of the matrix."""


@autotune(SPACE, key=("size",))
@jit(keep_general=("rows",))
def _kernel(
    c: tl.tensor,
    a: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    size: tl.tensor,
    width: tl.tensor,
    c_batch: tl.tensor,
    c_row: tl.tensor,
    c_column: tl.tensor,
    a_batch: tl.tensor,
    a_row: tl.tensor,
    a_column: tl.tensor,
    decay: tl.tensor,
    weight: tl.tensor,
    OLD: tl.constexpr,
    ONES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    tiles = tl.cdiv(size, BLOCK)
    tiles = tiles * (tiles + 1) // 2
    tile_row, tile_column = lower_tile(tl.program_id(0) % tiles)
    batch = (tl.program_id(0) // tiles).to(tl.int64)
    i = tile_row.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    j = tile_column.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    a += batch * a_batch
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, rows, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        n = n.to(tl.int64)
        left = tl.load(
            a + n[None, :] * a_row + i[:, None] * a_column,
            mask=(n[None, :] < rows) & (i[:, None] < width),
            other=0.0,
        )
        right = tl.load(
            a + n[:, None] * a_row + j[None, :] * a_column,
            mask=(n[:, None] < rows) & (j[None, :] < width),
            other=0.0,
        )
        if ONES:
            left = tl.where(i[:, None] == width, 1.0, left).to(left.dtype)
            right = tl.where((j[None, :] == width) & (n[:, None] < rows), 1.0, right).to(right.dtype)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    total *= weight
    if OLD:
        old = tl.load(
            c + batch * c_batch + i[:, None] * c_row + j[None, :] * c_column,
            mask=(i[:, None] < size) & (j[None, :] <= i[:, None]),
            other=0.0,
        ).to(tl.float32)
        total += decay * old
    store_mirrored(out + batch * size * size, total, i, j, size)


def symmetric_update(c: Tensor | None, a: Tensor, *, decay: float, weight: float, ones: bool) -> Tensor:
    """See :func:`vogn.kernels.symmetric_update`."""
    (*batch, rows, width), like = a.shape, a if c is None else c
    size = width + ones
    out = torch.empty((*batch, size, size), dtype=like.dtype, device=a.device)
    if out.numel():
        new = matrices(a)
        old = new if c is None else matrices(c)

        def grid(meta: dict[str, int]) -> tuple[int]:  # one axis: the others end at 65535
            return (lower_tiles(blocks(size, meta["BLOCK"])) * old.shape[0],)

        _kernel[grid](
            old,
            new,
            out,
            rows,
            size,
            width,
            *old.stride(),
            *new.stride(),
            float(decay),
            float(weight),
            OLD=c is not None,
            ONES=ones,
            PRECISION=dot_precision(),
        )
    return out
