"""Sums of squared per-example gradients of a linear layer, the squares formed in registers."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.kernels.gpu.language import autotune, blocks, dot_precision, jit, tl

SPACE = (
    {"BLOCK_O": 32, "BLOCK_I": 32, "BLOCK_N": 32, "warps": 4, "stages": 3},
    {"BLOCK_O": 64, "BLOCK_I": 64, "BLOCK_N": 32, "warps": 4, "stages": 3},
    {"BLOCK_O": 128, "BLOCK_I": 64, "BLOCK_N": 32, "warps": 8, "stages": 3},
)
"""Tile sizes tried once per shape of the layer."""


@autotune(SPACE, key=("d_out", "d_in"))
@jit(keep_general=("examples",))
def _kernel(
    g: tl.tensor,
    a: tl.tensor,
    out: tl.tensor,
    examples: tl.tensor,
    d_out: tl.tensor,
    d_in: tl.tensor,
    g_row: tl.tensor,
    g_column: tl.tensor,
    a_row: tl.tensor,
    a_column: tl.tensor,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_N: tl.constexpr,
) -> None:
    tiles = tl.cdiv(d_in, BLOCK_I)
    o = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = (tl.program_id(0) % tiles).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    total = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    for start in range(0, examples, BLOCK_N):
        n = start + tl.arange(0, BLOCK_N)
        rows = n.to(tl.int64)
        left = tl.load(
            g + rows[None, :] * g_row + o[:, None] * g_column,
            mask=(n[None, :] < examples) & (o[:, None] < d_out),
            other=0.0,
        ).to(tl.float32)
        right = tl.load(
            a + rows[:, None] * a_row + i[None, :] * a_column,
            mask=(n[:, None] < examples) & (i[None, :] < d_in),
            other=0.0,
        ).to(tl.float32)
        total = tl.dot(left * left, right * right, total, input_precision=PRECISION)
    inside = (o[:, None] < d_out) & (i[None, :] < d_in)
    tl.store(out + o[:, None] * d_in + i[None, :], total, mask=inside)


def squared_gradients(g: Tensor, a: Tensor) -> Tensor:
    """See :func:`vogn.kernels.squared_gradients`."""
    examples, d_out, d_in = *g.shape, a.shape[1]
    out = torch.empty((d_out, d_in), dtype=torch.float32, device=g.device)
    if out.numel():

        def grid(meta: dict[str, int]) -> tuple[int]:
            return (blocks(d_out, meta["BLOCK_O"]) * blocks(d_in, meta["BLOCK_I"]),)

        _kernel[grid](g, a, out, examples, d_out, d_in, *g.stride(), *a.stride(), PRECISION=dot_precision())
    return out
