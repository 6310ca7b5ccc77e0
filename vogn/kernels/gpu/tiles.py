"""Which tile of the lower half of a symmetric matrix a program computes, and where it stores it."""

from __future__ import annotations

from vogn.kernels.gpu.language import jit, tl


@jit()
def lower_tile(t: tl.tensor) -> tl.tensor:
    """Row and column of tile ``t`` in ``(0, 0), (1, 0), (1, 1), (2, 0), ...``."""
    row = ((tl.sqrt(8.0 * t.to(tl.float32) + 1.0) - 1.0) * 0.5).to(tl.int32)
    row = tl.where(row * (row + 1) // 2 > t, row - 1, row)  # the root was rounded up
    row = tl.where((row + 1) * (row + 2) // 2 <= t, row + 1, row)  # or down
    return row, t - row * (row + 1) // 2


@jit()
def store_mirrored(out: tl.tensor, value: tl.tensor, i: tl.tensor, j: tl.tensor, size: tl.tensor) -> None:
    """Store the elements of a tile on or below the diagonal at ``(i, j)`` and at ``(j, i)``."""
    i, j = i[:, None], j[None, :]
    inside = (i < size) & (j <= i)
    value = value.to(out.dtype.element_ty)
    tl.store(out + i * size + j, value, mask=inside)
    tl.store(out + j * size + i, value, mask=inside)


def lower_tiles(count: int) -> int:
    """Tiles in the lower half of a square of ``count`` by ``count`` tiles."""
    return count * (count + 1) // 2
