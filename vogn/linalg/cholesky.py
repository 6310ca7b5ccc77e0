"""Cholesky factorisation that says what to do when it fails."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError


def cholesky(matrix: Tensor, *, remedy: str) -> Tensor:
    """Lower factor ``R`` with ``R R^T = matrix``; a failure in single precision is retried in double.

    Args:
        matrix: symmetric, ``(*batch, n, n)``.
        remedy: what the user can do if the matrix is not positive definite; ends the error message.

    Raises:
        NonFiniteStatisticsError: if the matrix holds NaN or infinity.
        NotPositiveDefiniteError: if the matrix is not positive definite.
    """
    factor, info = torch.linalg.cholesky_ex(matrix)
    # an infinite pivot passes LAPACK's own check
    if not bool(info.any() | ~factor.diagonal(dim1=-2, dim2=-1).isfinite().all()):
        return factor
    if not bool(matrix.isfinite().all()):
        raise NonFiniteStatisticsError(f"a curvature of size {matrix.shape[-1]} holds NaN or infinity")
    if matrix.dtype != torch.float64:
        factor, info = torch.linalg.cholesky_ex(matrix.double())
        if not bool(info.any()):
            return factor.to(matrix.dtype)
    raise NotPositiveDefiniteError(
        f"a curvature plus its shift, of size {matrix.shape[-1]}, is not positive definite; {remedy}"
    )


def cholesky_solve(factor: Tensor, v: Tensor) -> Tensor:
    """``(R R^T)^-1`` applied to each row of ``v``.

    Args:
        factor: ``R``, ``(n, n)``.
        v: ``(batch, n)``.
    """
    return torch.cholesky_solve(v.mT, factor).mT


def cholesky_sample(factor: Tensor, noise: Tensor) -> Tensor:
    """``R^-T`` applied to each row of ``noise``: covariance ``(R R^T)^-1``, continuous in the matrix.

    Args:
        factor: ``R``, ``(n, n)``.
        noise: ``(batch, n)``.
    """
    return torch.linalg.solve_triangular(factor.mT, noise.mT, upper=True).mT


def cholesky_logdet(factor: Tensor) -> Tensor:
    """``log det (R R^T)``, a scalar."""
    return 2.0 * factor.diagonal(dim1=-2, dim2=-1).log().sum()


def cholesky_inverse_diagonal(factor: Tensor) -> Tensor:
    """``diag((R R^T)^-1)``, ``(n,)``; positive by construction."""
    eye = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, eye, upper=False).square().sum(-2)
