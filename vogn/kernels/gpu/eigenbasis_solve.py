"""Two-sided change of basis and back, with the division by the shifted eigenvalues inside the second product."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.kernels.gpu.language import autotune, blocks, dot_precision, jit, matrices, tl
from vogn.kernels.reference import widen

SPACE = (
    {"BLOCK_O": 32, "BLOCK_I": 32, "BLOCK_K": 32, "warps": 4, "stages": 3},
    {"BLOCK_O": 64, "BLOCK_I": 64, "BLOCK_K": 16, "warps": 4, "stages": 3},
    {"BLOCK_O": 128, "BLOCK_I": 64, "BLOCK_K": 16, "warps": 8, "stages": 3},
)
"""Tile sizes tried once per shape of the block."""


@autotune(SPACE, key=("d_out", "d_in"))
@jit()
def _kernel(
    half: tl.tensor,
    q: tl.tensor,
    eigenvalues: tl.tensor,
    out: tl.tensor,
    shift: tl.tensor,
    d_out: tl.tensor,
    d_in: tl.tensor,
    half_batch: tl.tensor,
    half_row: tl.tensor,
    half_column: tl.tensor,
    q_batch: tl.tensor,
    q_row: tl.tensor,
    q_column: tl.tensor,
    value_batch: tl.tensor,
    value_row: tl.tensor,
    value_column: tl.tensor,
    PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """``(half q) / (eigenvalues + shift)``."""
    across = tl.cdiv(d_in, BLOCK_I)
    tiles = tl.cdiv(d_out, BLOCK_O) * across
    batch, tile = (tl.program_id(0) // tiles).to(tl.int64), tl.program_id(0) % tiles
    o = (tile // across).to(tl.int64) * BLOCK_O + tl.arange(0, BLOCK_O)
    i = (tile % across).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    half += batch * half_batch
    q += batch * q_batch
    total = tl.zeros((BLOCK_O, BLOCK_I), dtype=tl.float32)
    for start in range(0, d_in, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k = k.to(tl.int64)
        left = tl.load(
            half + o[:, None] * half_row + k[None, :] * half_column,
            mask=(o[:, None] < d_out) & (k[None, :] < d_in),
            other=0.0,
        ).to(tl.float32)
        right = tl.load(
            q + k[:, None] * q_row + i[None, :] * q_column,
            mask=(k[:, None] < d_in) & (i[None, :] < d_in),
            other=0.0,
        ).to(tl.float32)
        total = tl.dot(left, right, total, input_precision=PRECISION)
    inside = (o[:, None] < d_out) & (i[None, :] < d_in)
    value = tl.load(
        eigenvalues + batch * value_batch + o[:, None] * value_row + i[None, :] * value_column, mask=inside, other=1.0
    ).to(tl.float32)
    tl.store(out + batch * d_out * d_in + o[:, None] * d_in + i[None, :], total / (value + shift), mask=inside)


def eigenbasis_solve(g: Tensor, q_s: Tensor, q_a: Tensor, eigenvalues: Tensor, *, shift: float) -> Tensor:
    """See :func:`vogn.kernels.eigenbasis_solve`; the three products without division are torch's."""
    d_out, d_in = g.shape[-2:]
    middle = torch.empty(g.shape, dtype=torch.float32, device=g.device)
    left, right = widen(q_s), widen(q_a)
    if g.numel():
        half, q, values = matrices(left.mT @ widen(g)), matrices(q_a), matrices(eigenvalues)

        def grid(meta: dict[str, int]) -> tuple[int]:  # one axis: the others end at 65535
            return (blocks(d_out, meta["BLOCK_O"]) * blocks(d_in, meta["BLOCK_I"]) * half.shape[0],)

        _kernel[grid](
            half,
            q,
            values,
            middle,
            float(shift),
            d_out,
            d_in,
            *half.stride(),
            *q.stride(),
            *values.stride(),
            PRECISION=dot_precision(),
        )
    return (left @ middle @ right.mT).to(g.dtype)
