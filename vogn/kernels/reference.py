"""Plain PyTorch meaning of every kernel.

Shapes: ``a`` is ``(*lead, N, T, d_in)``, ``g`` is ``(*lead, K, N, T, d_out)``; the row of example ``n`` and column
``k`` is ``J[k, n] = sum_t g[k, n, t] a[n, t]^T`` of shape ``(*lead, d_out, d_in)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Per-example gradients are materialised in chunks of at most this many numbers."""

CACHED_ELEMENTS = 1 << 18
"""Where a sum over examples is all that is wanted, chunks of this many stay in the processor's cache, and one buffer
serves all of them."""


def row_dense(a: Tensor, g: Tensor) -> Tensor:
    """Per-example gradients, ``(*lead, K, N, d_out, d_in)``."""
    return g.transpose(-1, -2) @ a.unsqueeze(-4)


def row_squares(a: Tensor, g: Tensor) -> Tensor:
    """Sum over ``k`` and ``n`` of the elementwise squares of the rows, ``(*lead, d_out, d_in)``."""
    if a.shape[-2] == 1:  # one position: (g a^T)^2 = g^2 (a^2)^T
        return g.squeeze(-2).square().sum(-3).transpose(-1, -2) @ a.squeeze(-2).square()
    total = a.new_zeros((*a.shape[:-3], g.shape[-1], a.shape[-1]))
    per_example = g.shape[-4] * max(1, total.numel())
    chunk = max(1, (CACHED_ELEMENTS if a.device.type == "cpu" else CHUNK_ELEMENTS) // per_example)
    rows = a.new_empty(0)
    for start in range(0, a.shape[-3], chunk):
        part = slice(start, min(start + chunk, a.shape[-3]))
        if part.stop - start < chunk:
            rows = a.new_empty(0)  # a buffer of another size
        rows = torch.matmul(g[..., part, :, :].mT, a[..., part, :, :].unsqueeze(-4), out=rows)
        if rows.shape[-4] == rows.shape[-3] == 1:
            total.addcmul_(rows[..., 0, 0, :, :], rows[..., 0, 0, :, :])
        else:
            total += rows.square_().sum((-4, -3))
    return total


def row_matvec(a: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """``<J[k, n], v>`` for a block vector ``v`` of shape ``(*lead, d_out, d_in)``; returns ``(K, N)``."""
    products = (g * (a @ v.transpose(-1, -2).unsqueeze(-3)).unsqueeze(-4)).sum((-1, -2))
    return products.reshape(-1, *products.shape[-2:]).sum(0)


def row_rmatvec(a: Tensor, g: Tensor, c: Tensor) -> Tensor:
    """``sum_{k,n} c[k, n] J[k, n]`` for ``c`` of shape ``(K, N)``; returns ``(*lead, d_out, d_in)``."""
    weighted = (g * c[..., None, None]).sum(-4).flatten(-3, -2)
    return weighted.transpose(-1, -2) @ a.flatten(-3, -2)


def row_gram(a: Tensor, g: Tensor) -> Tensor:
    """Inner products of the rows, ``(K N, K N)``, summed over the leading dimensions.

    By pairs of positions, ``sum_tu (a_nt . a_mu) (g_nt . g_mu)``, or by explicit rows: whichever takes fewer
    multiply-adds. Either way in pieces of at most :data:`CHUNK_ELEMENTS` numbers, where one example's positions against
    all others, or one output column of all rows, are not more than that.
    """
    return gram_by_pairs(a, g) if gram_costs(a, g)[0] < gram_costs(a, g)[1] else gram_by_rows(a, g)


def gram_costs(a: Tensor, g: Tensor) -> tuple[int, int]:
    """Multiply-adds of :func:`gram_by_pairs` and of :func:`gram_by_rows`."""
    *lead, columns, examples, positions, d_out = g.shape
    blocks, rows, d_in = math.prod(lead), columns * examples, a.shape[-1]
    pairs = (examples * positions) ** 2 * d_in + (rows * positions) ** 2 * (d_out + 1)
    explicit = rows * positions * d_out * d_in + rows**2 * d_out * d_in
    return blocks * pairs, blocks * explicit


def gram_by_pairs(a: Tensor, g: Tensor) -> Tensor:
    """:func:`row_gram` without per-example gradients."""
    columns, examples, positions = g.shape[-4:-1]
    total = a.new_zeros((columns, examples, columns, examples))
    chunk = max(1, CHUNK_ELEMENTS // max(1, examples * positions * positions))
    for inputs, outputs in zip(a.reshape(-1, *a.shape[-3:]), g.reshape(-1, *g.shape[-4:]), strict=True):
        flat_inputs, flat_outputs = inputs.flatten(0, 1), outputs.flatten(1, 2)
        for start in range(0, examples, chunk):
            stop = min(start + chunk, examples)
            shape = (stop - start, positions, examples, positions)
            products = inputs[start:stop].flatten(0, 1) @ flat_inputs.T
            for k, left in enumerate(outputs[:, start:stop].flatten(1, 2)):
                for j, right in enumerate(flat_outputs):
                    total[k, start:stop, j] += (left @ right.T).mul_(products).view(shape).sum((1, 3))
    return total.flatten(0, 1).flatten(1)


def gram_by_rows(a: Tensor, g: Tensor) -> Tensor:
    """:func:`row_gram` from per-example gradients, some leading indices or output columns at a time."""
    rows, d_in, d_out = g.shape[-4] * g.shape[-3], a.shape[-1], g.shape[-1]
    total = a.new_zeros((rows, rows))
    a, g = a.reshape(-1, *a.shape[-3:]), g.reshape(-1, *g.shape[-4:])
    blocks = max(1, CHUNK_ELEMENTS // max(1, rows * d_out * d_in))
    columns = d_out if blocks > 1 else max(1, CHUNK_ELEMENTS // max(1, rows * d_in))
    for inputs, outputs in zip(a.split(blocks), g.split(blocks), strict=True):
        for part in outputs.split(max(1, columns), -1):
            explicit = row_dense(inputs, part).flatten(-2).flatten(-3, -2)  # (blocks, K N, columns d_in)
            explicit = explicit.movedim(-2, 0).flatten(1)
            total.addmm_(explicit, explicit.T)
    return total
