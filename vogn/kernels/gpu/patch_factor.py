"""The input factor of a convolution, its patches read in place: they are never stored."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.kernels.gpu.language import autotune, blocks, dot_precision, jit, tl
from vogn.kernels.gpu.tiles import lower_tile, lower_tiles, store_mirrored

SPACE = (
    {"BLOCK": 32, "BLOCK_N": 32, "warps": 4, "stages": 2},
    {"BLOCK": 64, "BLOCK_N": 16, "warps": 4, "stages": 2},
)
"""Tile sizes tried once per size of the factor."""
PROGRAMS = 512
"""Programs wanted: positions are divided where a factor has fewer tiles."""


@jit()
def _patches(
    x: tl.tensor,
    feature: tl.tensor,
    position: tl.tensor,
    last: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    out_height: tl.tensor,
    out_width: tl.tensor,
    x_image: tl.tensor,
    x_channel: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    features: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ONES: tl.constexpr,
) -> tl.tensor:
    """Elements ``feature`` of the patches at ``position``, one of the two a row and the other a column."""
    channel = feature // (KERNEL[0] * KERNEL[1])
    image = position // (out_height * out_width)
    y = (position // out_width) % out_height * STRIDE[0] - PADDING[0] + feature // KERNEL[1] % KERNEL[0] * DILATION[0]
    z = position % out_width * STRIDE[1] - PADDING[1] + feature % KERNEL[1] * DILATION[1]
    inside = (feature < features) & (position < last) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
    place = image.to(tl.int64) * x_image + channel.to(tl.int64) * x_channel + y.to(tl.int64) * x_row + z * x_column
    value = tl.load(x + place, mask=inside, other=0.0)
    if ONES:
        value = tl.where((feature == features) & (position < last), 1.0, value).to(value.dtype)
    return value


@autotune(SPACE, key=("size",))
@jit(keep_general=("positions", "part"))
def _kernel(
    x: tl.tensor,
    out: tl.tensor,
    size: tl.tensor,
    positions: tl.tensor,
    part: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    out_height: tl.tensor,
    out_width: tl.tensor,
    x_image: tl.tensor,
    x_channel: tl.tensor,
    x_row: tl.tensor,
    x_column: tl.tensor,
    features: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    PADDING: tl.constexpr,
    DILATION: tl.constexpr,
    ONES: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    tile_row, tile_column = lower_tile(tl.program_id(0))
    i = tile_row * BLOCK + tl.arange(0, BLOCK)
    j = tile_column * BLOCK + tl.arange(0, BLOCK)
    first = tl.program_id(1) * part
    last = tl.minimum(first + part, positions)
    total = tl.zeros((BLOCK, BLOCK), dtype=tl.float32)
    for start in range(0, part, BLOCK_N):
        n = first + start + tl.arange(0, BLOCK_N)
        left = _patches(
            x, i[:, None], n[None, :], last, height, width, out_height, out_width, x_image, x_channel, x_row, x_column,
            features, KERNEL, STRIDE, PADDING, DILATION, ONES,
        )  # fmt: skip
        right = _patches(
            x, j[None, :], n[:, None], last, height, width, out_height, out_width, x_image, x_channel, x_row, x_column,
            features, KERNEL, STRIDE, PADDING, DILATION, ONES,
        )  # fmt: skip
        total = tl.dot(left, right, total, input_precision=PRECISION)
    i, j = i.to(tl.int64), j.to(tl.int64)
    store_mirrored(out + tl.program_id(1).to(tl.int64) * size * size, total, i, j, size)


def patch_factor(
    x: Tensor,
    *,
    kernel_size: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    out_size: tuple[int, int],
    ones: bool,
) -> Tensor:
    """See :func:`vogn.kernels.patch_factor`."""
    features = x.shape[1] * kernel_size[0] * kernel_size[1]
    size, positions = features + ones, x.shape[0] * out_size[0] * out_size[1]
    if not size or not positions:
        return torch.zeros((size, size), dtype=torch.float32, device=x.device)
    wanted = max(1, PROGRAMS // lower_tiles(blocks(size, 64)))
    part = blocks(blocks(positions, wanted), 128) * 128
    parts = blocks(positions, part)
    out = torch.empty((parts, size, size), dtype=torch.float32, device=x.device)

    def grid(meta: dict[str, int]) -> tuple[int, int]:
        return (lower_tiles(blocks(size, meta["BLOCK"])), parts)

    _kernel[grid](
        x,
        out,
        size,
        positions,
        part,
        x.shape[2],
        x.shape[3],
        *out_size,
        *x.stride(),
        features=features,
        KERNEL=kernel_size,
        STRIDE=stride,
        PADDING=padding,
        DILATION=dilation,
        ONES=ones,
        PRECISION=dot_precision(),
    )
    return out.sum(0) if parts > 1 else out[0]
