"""Conjugate gradients for a symmetric positive definite operator that is known by its products."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError

Operator = Callable[[Tensor], Tensor]


def conjugate_gradient(
    product: Operator,
    right: Tensor,
    *,
    preconditioner: Operator,
    start: Tensor | None = None,
    tolerance: float | None = None,
    iterations: int = 1000,
) -> Tensor:
    """The solution of ``A x = b``.

    Args:
        product: ``A v`` for tensors of the shape of ``b``; symmetric and positive definite.
        right: ``b``, of any shape.
        preconditioner: ``P v`` with ``P`` close to the inverse of ``A``, symmetric and positive definite.
        start: first guess; ``None`` is zero.
        tolerance: the iteration ends where the residual's norm is so many times that of ``b``; ``None``: 100 roundings.
        iterations: most of them, >= 1.

    Returns:
        ``x``. If the iterations are used up, the last one: rounding then stands in the way of the tolerance.

    Raises:
        NotPositiveDefiniteError: if a direction has no positive curvature.

    Source: Hestenes and Stiefel (1952), "Methods of Conjugate Gradients for Solving Linear Systems".
    """
    x = torch.zeros_like(right) if start is None else start.clone()
    residual = right - product(x)
    goal = (100.0 * torch.finfo(right.dtype).eps if tolerance is None else tolerance) * float(right.norm())
    direction = ready = preconditioner(residual)
    along = float((residual * ready).sum())
    for _ in range(iterations):
        if float(residual.norm()) <= goal or along == 0.0:
            break
        image = product(direction)
        curvature = float((direction * image).sum())
        if not curvature > 0.0:
            raise NotPositiveDefiniteError(
                f"a direction has curvature {curvature:g}: the matrix is not positive definite, so there is no solution"
            )
        length = along / curvature
        x = x + length * direction
        residual = residual - length * image
        ready = preconditioner(residual)
        before, along = along, float((residual * ready).sum())
        direction = ready + (along / before) * direction
    return x
