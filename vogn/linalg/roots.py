"""Square roots of symmetric positive definite matrices, and low-rank approximations from a few of their columns."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import LinAlgError

from vogn.errors import FactorisationError, NonFiniteStatisticsError, NotPositiveDefiniteError

LARGEST_ERROR = 1e-6
"""Largest error of ``Y Z = I`` that counts as converged: rounding reaches it near a condition of ``1e12``."""


def denman_beavers(matrix: Tensor, *, remedy: str, iterations: int = 100) -> tuple[Tensor, Tensor]:
    """The symmetric roots ``A^(1/2)`` and ``A^(-1/2)`` by the scaled iteration of Denman and Beavers.

    ``Y_0 = A``, ``Z_0 = I``; ``Y <- (c Y + Z^-1 / c) / 2``, ``Z <- (c Z + Y^-1 / c) / 2`` with
    ``c = |det Y det Z|^(-1 / 2 n)``, in double precision. The scaling is dropped near the fixed point, where
    plain steps converge quadratically; the iteration ends when a step no longer brings ``Y`` nearer to it.

    Args:
        matrix: symmetric up to rounding, ``(*batch, n, n)``.
        remedy: what the user can do if the matrix has no root; ends the error message.
        iterations: most iterations, >= 1.

    Returns:
        Both roots, ``(*batch, n, n)``, symmetric, in the dtype of the matrix.

    Raises:
        NonFiniteStatisticsError: if the matrix holds NaN or infinity.
        NotPositiveDefiniteError: if an iterate is singular, or the limit is no root of the matrix with positive
            diagonal: the matrix is not positive definite in double precision.
        FactorisationError: if the iteration has not converged, as with negative eigenvalues.

    Source: Denman, Beavers 1976; Higham 2008, "Functions of Matrices", section 6.3 (scaling).
    """
    if not bool(matrix.isfinite().all()):
        raise NonFiniteStatisticsError(f"a metric of size {matrix.shape[-1]} holds NaN or infinity")
    wide = matrix.double()
    wide = 0.5 * (wide + wide.mT)
    size = wide.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
    if not bool((size > 0).all()):
        _raise_indefinite(matrix, remedy)
    y, z, step = wide / size, torch.eye(matrix.shape[-1], dtype=wide.dtype, device=wide.device).expand_as(wide), 1.0
    for _ in range(iterations):
        before, last = y, step
        y, z = _iterate(y, z, scaled=last > 1e-2, matrix=matrix, remedy=remedy)
        step = float((torch.linalg.matrix_norm(y - before) / torch.linalg.matrix_norm(y)).max())
        if step < 1e-14 or (last < 1e-6 and step >= 0.5 * last):
            break
    else:
        raise FactorisationError(
            f"the root of a metric of size {matrix.shape[-1]} did not converge in {iterations} iterations; {remedy}"
        )
    y, z = 0.5 * (y + y.mT), 0.5 * (z + z.mT)
    _check(wide / size, y, z, matrix, remedy)
    return (y * size.sqrt()).to(matrix.dtype), (z / size.sqrt()).to(matrix.dtype)


def _iterate(y: Tensor, z: Tensor, *, scaled: bool, matrix: Tensor, remedy: str) -> tuple[Tensor, Tensor]:
    """One step; ``scaled`` with the determinants, which keeps the number of steps small."""
    try:
        y_inverse, z_inverse = torch.linalg.inv(y), torch.linalg.inv(z)
    except LinAlgError:
        _raise_indefinite(matrix, remedy)
    c: Tensor | float = 1.0
    if scaled:
        logarithm = torch.linalg.slogdet(y).logabsdet + torch.linalg.slogdet(z).logabsdet
        c = (-logarithm / (2.0 * y.shape[-1])).exp()[..., None, None]
    return 0.5 * (c * y + z_inverse / c), 0.5 * (c * z + y_inverse / c)


def _check(wide: Tensor, y: Tensor, z: Tensor, matrix: Tensor, remedy: str) -> None:
    """The limits are roots of the matrix and inverses of each other, and positive: a negative eigenvalue leaves the
    iteration wandering or at a root of something else."""
    root = torch.linalg.matrix_norm(y @ y - wide) / torch.linalg.matrix_norm(wide)
    eye = torch.eye(wide.shape[-1], dtype=wide.dtype, device=wide.device)
    inverse = torch.linalg.matrix_norm(y @ z - eye) / wide.shape[-1] ** 0.5
    positive = (y.diagonal(dim1=-2, dim2=-1) > 0).all() & (z.diagonal(dim1=-2, dim2=-1) > 0).all()
    if not bool(positive & (root < 1e-8).all() & (inverse < LARGEST_ERROR).all()):
        _raise_indefinite(matrix, remedy)


def _raise_indefinite(matrix: Tensor, remedy: str) -> None:
    raise NotPositiveDefiniteError(
        f"a metric plus its shift, of size {matrix.shape[-1]}, has no real root: it is not positive definite in double "
        f"precision; {remedy}"
    )


def nystrom_columns(matrix: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """``L`` with ``L L^T = C W^+ C^T``, the Nystrom approximation from chosen columns ``C`` with core ``W``.

    The columns are chosen one after the other, the largest diagonal of what is left first (a Cholesky factorisation
    with pivots, stopped early): no random numbers, exact if ``columns`` is at least the rank, and never above the
    matrix. Near a tie of two diagonals the choice, and with it the approximation, jumps.

    Args:
        matrix: symmetric positive semi-definite, ``(*batch, n, n)``.
        columns: number of columns, at most ``n``.

    Returns:
        ``L (*batch, n, columns)`` and the diagonal of the rest ``(*batch, n)``, clamped at zero.

    Raises:
        NonFiniteStatisticsError: if the matrix holds NaN or infinity.

    Source: Williams, Seeger 2001; Harbrecht, Peters, Schneider 2012 for the pivots.
    """
    if not bool(matrix.isfinite().all()):
        raise NonFiniteStatisticsError(f"a metric of size {matrix.shape[-1]} holds NaN or infinity")
    factor = matrix.new_zeros((*matrix.shape[:-1], columns))
    rest = matrix.diagonal(dim1=-2, dim2=-1).clone()
    rounding = matrix.shape[-1] * torch.finfo(matrix.dtype).eps * rest.amax(-1)
    for k in range(columns):
        pivot = rest.argmax(-1)
        size = rest.gather(-1, pivot.unsqueeze(-1))
        index = pivot[..., None, None]
        column = matrix.gather(-1, index.expand(*matrix.shape[:-1], 1)).squeeze(-1)
        row = factor.gather(-2, index.expand(*matrix.shape[:-2], 1, columns)).squeeze(-2)
        column = column - (factor @ row.unsqueeze(-1)).squeeze(-1)
        alive = size > rounding.unsqueeze(-1)
        column = torch.where(alive, column / torch.where(alive, size, 1.0).sqrt(), 0.0)
        factor[..., k] = column
        rest = (rest - column.square()).clamp_min_(0.0)
        rest = rest.scatter(-1, pivot.unsqueeze(-1), torch.where(alive, 0.0, rest.gather(-1, pivot.unsqueeze(-1))))
    return factor, rest
