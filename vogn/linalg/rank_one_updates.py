"""The inverse of ``F = s I + U U^T`` by one rank-one update per column: M-FAC's two recursions, on flat vectors.

``F_i`` holds the first ``i`` columns, ``F_0 = s I``. Sherman and Morrison's formula gives::

    v_i = F_{i-1}^-1 u_i,   q_i = 1 + u_i^T v_i,   F_i^-1 = F_{i-1}^-1 - v_i v_i^T / q_i

In the paper's scale the columns are gradients ``g_i = sqrt(m) u_i``, its ``q_i`` is ``m`` times ours and its ``v_i`` is
``sqrt(m)`` times ours; ``v_i v_i^T / q_i`` is the same.

The *static* form keeps all ``v_i``: ``O(D r^2)`` once, then ``O(D r)`` per product and ``O(r)`` per element of the
diagonal. The *dynamic* form keeps only ``r x r`` matrices besides ``U``: ``O(r^3)`` when a column has been exchanged,
then ``O(D r + r^2)`` per product.

Source: Frantar, Kurtic, Alistarh (2021), "M-FAC: Efficient Matrix-Free Approximations of Second-Order Information",
sections 3.1 and 3.2.
"""

from __future__ import annotations

import torch
from torch import Tensor


def static_factors(u: Tensor, s: float) -> tuple[Tensor, Tensor]:
    """``v (r, D)`` and ``q (r,)`` of the columns of ``u (D, r)``; ``s > 0``."""
    v = u.T / s
    q = v.new_ones(len(v))
    for i in range(len(v)):
        if i:
            v[i] -= ((v[:i] @ u[:, i]) / q[:i]) @ v[:i]
        q[i] += u[:, i] @ v[i]
    return v, q


def static_solve(v: Tensor, q: Tensor, s: float, x: Tensor) -> Tensor:
    """``F^-1 x = x / s - sum_i v_i (v_i^T x) / q_i`` for ``x (batch, D)``."""
    return torch.addmm(x / s, (x @ v.T) / q, v, alpha=-1.0)


def static_inverse_diagonal(v: Tensor, q: Tensor, s: float) -> Tensor:
    """``[F^-1]_kk = 1 / s - sum_i v_ik^2 / q_i``, ``(D,)``: what pruning asks for."""
    return 1.0 / s - (v.square() / q.unsqueeze(-1)).sum(0)


def dynamic_factors(gram: Tensor, s: float) -> tuple[Tensor, Tensor, Tensor]:
    """The ``r x r`` side of the recursion from ``U^T U``.

    Returns:
        ``D (r, r)``, upper triangular, ``D_ij = u_i^T F_{i-1}^-1 u_j``: the upper factor of the LU decomposition of
        ``U^T U / s + I`` without pivots, minus ``I``; ``q = 1 + diag D``; ``B (r, r)``, lower triangular, with
        ``v = B U^T``.
    """
    d = gram / s
    for i in range(len(d) - 1):
        d[i + 1 :, i + 1 :] -= torch.outer(d[i, i + 1 :], d[i, i + 1 :]) / (1.0 + d[i, i])
    d = d.triu()
    q = 1.0 + d.diagonal()
    b = torch.zeros_like(d)
    for i in range(len(d)):
        b[i, i] = 1.0 / s
        b[i, :i] = -(d[:i, i] / q[:i]) @ b[:i, :i]
    return d, q, b


def dynamic_solve(u: Tensor, factors: tuple[Tensor, Tensor, Tensor], s: float, x: Tensor) -> Tensor:
    """``F^-1 x = x / s - U B^T (t / q)`` for ``x (batch, D)``, where ``t_i = u_i^T F_{i-1}^-1 x``."""
    d, q, b = factors
    t = (x @ u) / s
    for i in range(len(d) - 1):
        t[:, i + 1 :] -= (t[:, i] / q[i]).unsqueeze(-1) * d[i, i + 1 :]
    return torch.addmm(x / s, (t / q) @ b, u.T, alpha=-1.0)
