"""Cholesky factorisation that says what to do when it fails."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.linalg.scaling import normalise

ROUNDINGS = (1.0, 10.0, 100.0)
"""Multiples of ``eps * trace`` that a rescue adds to the diagonal, in turn."""


def cholesky(matrix: Tensor, *, remedy: str, rescue: bool = False) -> Tensor:
    """Lower factor ``R`` with ``R R^T = matrix``.

    The matrix is symmetrised and brought to a trace near its size first. A failure in single precision is retried in
    double precision. With ``rescue`` a last retry adds 1, 10 or 100 rounding errors of the trace (``eps`` of the
    matrix's own dtype times the trace) to the diagonal: for matrices that are positive definite by construction, so
    that only rounding can have made them indefinite.

    Args:
        matrix: symmetric up to rounding, ``(*batch, n, n)``.
        remedy: what the user can do if the matrix is not positive definite; ends the error message.
        rescue: whether the exact matrix is known to be positive definite.

    Raises:
        NonFiniteStatisticsError: if the matrix holds NaN or infinity.
        NotPositiveDefiniteError: if the matrix is not positive definite.
    """
    normalised, scale = normalise(matrix)
    root = scale.sqrt()[..., None, None]
    factor = _attempt(normalised)
    if factor is not None:
        return factor * root
    if not bool(matrix.isfinite().all()):
        raise NonFiniteStatisticsError(f"a curvature of size {matrix.shape[-1]} holds NaN or infinity")
    factor = _retry(normalised, ROUNDINGS if rescue else ())
    if factor is None:
        raise NotPositiveDefiniteError(
            f"a curvature plus its shift, of size {matrix.shape[-1]}, is not positive definite; {remedy}"
        )
    return factor.to(matrix.dtype) * root


def _attempt(matrix: Tensor) -> Tensor | None:
    factor, info = torch.linalg.cholesky_ex(matrix)
    # an infinite pivot passes LAPACK's own check
    failed = bool(info.any() | ~factor.diagonal(dim1=-2, dim2=-1).isfinite().all())
    return None if failed else factor


def _retry(matrix: Tensor, roundings: tuple[float, ...]) -> Tensor | None:
    """In double precision, as it is and with a jitter of so many rounding errors of the trace."""
    double = matrix.double()
    rounding = torch.finfo(matrix.dtype).eps * double.diagonal(dim1=-2, dim2=-1).sum(-1)
    for multiple in (0.0, *roundings):
        shifted = double.clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_(multiple * rounding.unsqueeze(-1))
        factor = _attempt(shifted)
        if factor is not None:
            return factor
    return None


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
