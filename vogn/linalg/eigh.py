"""Eigendecomposition of positive semi-definite factors, and operators that are diagonal in a Kronecker eigenbasis.

A basis is a pair ``QS (*lead, o, o)``, ``QA (*lead, i, i)`` of orthogonal matrices; the block vector ``V`` has the
coordinates ``QS^T V QA``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import LinAlgError

from vogn.errors import FactorisationError, NonFiniteStatisticsError
from vogn.linalg.scaling import normalise


def eigh(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues (ascending, clamped at zero) and eigenvectors of a positive semi-definite matrix.

    The matrix is symmetrised and brought to a trace near its size first. Where the decomposition fails it is tried
    again in double precision, then with one rounding error of the mean eigenvalue on the diagonal.

    Args:
        matrix: symmetric up to rounding, ``(*batch, n, n)``.

    Returns:
        ``(*batch, n)`` and ``(*batch, n, n)`` in the dtype of the matrix.

    Raises:
        NonFiniteStatisticsError: if the matrix holds NaN or infinity.
        FactorisationError: if no attempt converges.
    """
    if matrix.shape[-1] == 1:
        if not bool(matrix.isfinite().all()):
            _raise_non_finite(matrix)
        return matrix.squeeze(-1).clamp_min(0.0), torch.ones_like(matrix)
    normalised, scale = normalise(matrix)
    found = _attempt(normalised)
    if found is None:
        if not bool(matrix.isfinite().all()):
            _raise_non_finite(matrix)
        found = _retry(normalised)
    values, vectors = found
    # LAPACK's column order would not survive a checkpoint, and with it not the rounding of what follows
    return values.clamp_min(0.0) * scale.unsqueeze(-1), vectors.contiguous()


def _attempt(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """The decomposition, or ``None`` where it does not converge or, silently, is not finite."""
    try:
        values, vectors = torch.linalg.eigh(matrix)
    except LinAlgError:
        return None
    return (values, vectors) if bool((values.sum() + vectors.sum()).isfinite()) else None


def _retry(matrix: Tensor) -> tuple[Tensor, Tensor]:
    double = matrix.double()
    rounding = torch.finfo(matrix.dtype).eps * double.diagonal(dim1=-2, dim2=-1).mean(-1)
    eye = torch.eye(matrix.shape[-1], dtype=torch.float64, device=matrix.device)
    for attempt in (double, double + rounding[..., None, None] * eye):
        found = _attempt(attempt)
        if found is not None:
            return found[0].to(matrix.dtype), found[1].to(matrix.dtype)
    raise FactorisationError(
        f"the eigendecomposition of a curvature factor of size {matrix.shape[-1]} did not converge; "
        "lower the learning rate or increase the damping, and check the inputs of this layer"
    )


def _raise_non_finite(matrix: Tensor) -> None:
    raise NonFiniteStatisticsError(
        f"a curvature factor of size {matrix.shape[-1]} holds NaN or infinity; check the loss scale and the inputs"
    )


def to_basis(v: Tensor, qs: Tensor, qa: Tensor) -> Tensor:
    """Coordinates ``QS^T V QA`` of ``(*batch, *lead, o, i)``."""
    return qs.mT @ v @ qa


def from_basis(v: Tensor, qs: Tensor, qa: Tensor) -> Tensor:
    """Back from coordinates: ``QS V QA^T``."""
    return qs @ v @ qa.mT


def diagonal_from_basis(values: Tensor, qs: Tensor, qa: Tensor) -> Tensor:
    """The diagonal, as a block vector, of the operator that has ``values (*lead, o, i)`` on the basis."""
    return qs.square() @ values @ qa.square().mT


def dense_from_basis(values: Tensor, qs: Tensor, qa: Tensor) -> Tensor:
    """The operator with ``values`` on the basis as one ``(D, D)`` matrix, block-diagonal over ``lead``."""
    o, i = values.shape[-2:]
    blocks = []
    for s, p, q in zip(values.reshape(-1, o * i), qs.reshape(-1, o, o), qa.reshape(-1, i, i), strict=True):
        basis = torch.kron(p.contiguous(), q.contiguous())
        blocks.append((basis * s) @ basis.T)
    return torch.block_diag(*blocks)
