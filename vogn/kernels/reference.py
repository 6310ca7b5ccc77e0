"""Plain PyTorch meaning of every kernel.

Shapes: ``a`` is ``(*lead, N, T, d_in)``, ``g`` is ``(*lead, K, N, T, d_out)``; the row of example ``n`` and column
``k`` is ``J[k, n] = sum_t g[k, n, t] a[n, t]^T`` of shape ``(*lead, d_out, d_in)``.
"""

from __future__ import annotations

from torch import Tensor

CHUNK_ELEMENTS = 1 << 22
"""Per-example gradients are materialised in chunks of at most this many numbers."""


def row_dense(a: Tensor, g: Tensor) -> Tensor:
    """Per-example gradients, ``(*lead, K, N, d_out, d_in)``."""
    return g.transpose(-1, -2) @ a.unsqueeze(-4)


def row_squares(a: Tensor, g: Tensor) -> Tensor:
    """Sum over ``k`` and ``n`` of the elementwise squares of the rows, ``(*lead, d_out, d_in)``."""
    if a.shape[-2] == 1:  # one position: (g a^T)^2 = g^2 (a^2)^T
        return g.squeeze(-2).square().sum(-3).transpose(-1, -2) @ a.squeeze(-2).square()
    total = a.new_zeros((*a.shape[:-3], g.shape[-1], a.shape[-1]))
    per_example = g.shape[-4] * max(1, total.numel())
    chunk = max(1, CHUNK_ELEMENTS // per_example)
    for start in range(0, a.shape[-3], chunk):
        stop = start + chunk
        rows = row_dense(a[..., start:stop, :, :], g[..., start:stop, :, :])
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
    """Inner products of the rows, ``(K N, K N)``, summed over the leading dimensions."""
    if a.shape[-2] == 1 and a.shape[-1] > 1:
        inputs = a.squeeze(-2) @ a.squeeze(-2).transpose(-1, -2)
        flat = g.squeeze(-2).flatten(-3, -2)
        outputs = flat @ flat.transpose(-1, -2)
        k = g.shape[-4]
        gram = outputs * inputs.repeat(*(1,) * (inputs.ndim - 2), k, k)
        return gram.reshape(-1, *gram.shape[-2:]).sum(0)
    rows = row_dense(a, g).flatten(-2).flatten(-3, -2)  # (*lead, K N, d_out d_in)
    rows = rows.movedim(-2, 0).flatten(1)  # one product over everything: never a Gram matrix per leading index
    return rows @ rows.T
