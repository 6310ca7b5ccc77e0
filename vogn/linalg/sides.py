"""Sides of a Kronecker product that are too large for a matrix: a diagonal factor, whose eigenbasis are the axes.

A factor is ``(*lead, n, n)``, or ``(*lead, 1, n)`` if it is diagonal; its eigenvectors have the same shape, ones where
they are the axes. The functions on bases are those of :mod:`vogn.linalg.eigh` for any mixture of the two kinds.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vogn.errors import NonFiniteStatisticsError
from vogn.kernels.dispatch import fitting
from vogn.linalg import eigh as full
from vogn.types import Shape

LEAST_SIZE, MOST_ROWS = 512, 8
"""Where Triton's symmetric product was measured to be faster than ours (NVIDIA H100, docs/kernels.md): from this size
on, and up to so many rows for each of its columns."""


def is_diagonal(side: Tensor) -> bool:
    """Whether a factor or its basis is stored as a diagonal; one of size 1 counts as a matrix."""
    return side.shape[-2] == 1 < side.shape[-1]


def identity(
    lead: Shape, size: int, *, diagonal: bool, dtype: torch.dtype, device: torch.device | str, scale: float = 1.0
) -> Tensor:
    """``scale * I``, as a matrix or as a diagonal."""
    if diagonal:
        return torch.full((*lead, 1, size), scale, dtype=dtype, device=device)
    return (torch.eye(size, dtype=dtype, device=device) * scale).repeat(*lead, 1, 1)


def second_moment(left: Tensor, right: Tensor, *, diagonal: bool) -> Tensor:
    """``left^T right`` of ``(*lead, m, n)``, or its diagonal ``(*lead, 1, n)``; by halves if both are one."""
    if diagonal:
        return (left * right).sum(-2, keepdim=True)
    return _symmetric(left) if left is right else left.mT @ right


def _symmetric(x: Tensor) -> Tensor:
    """``x^T x`` of ``(*lead, m, n)``: bands of rows from the diagonal on, and their mirror images."""
    size = x.shape[-1]
    tall = x.ndim > 2 or size < LEAST_SIZE or x.shape[-2] > MOST_ROWS * size
    kernel = fitting("symmetric_update", x, slower=tall)
    if kernel is not None:
        product: Tensor = kernel(None, x, decay=0.0, weight=1.0, ones=False)
        return product
    if size < 128:
        return x.mT @ x
    out = x.new_empty((*x.shape[:-2], size, size))
    band = -(-size // (2 if size < 512 else 4))
    for start in range(0, size, band):
        stop = min(start + band, size)
        rows = x[..., start:stop].mT @ x[..., start:]
        out[..., start:stop, start:] = rows
        out[..., stop:, start:stop] = rows[..., stop - start :].mT
    return out


def decompose(factor: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ``(*lead, n)``, clamped at zero, and eigenvectors in the shape of the factor.

    Raises:
        NonFiniteStatisticsError: if the factor holds NaN or infinity.
    """
    if not is_diagonal(factor):
        return full.eigh(factor)
    if not bool(factor.isfinite().all()):
        raise NonFiniteStatisticsError(
            f"a curvature factor of size {factor.shape[-1]} holds NaN or infinity; check the loss scale and the inputs"
        )
    return factor.squeeze(-2).clamp_min(0.0), torch.ones_like(factor)


def compose(values: Tensor, vectors: Tensor) -> Tensor:
    """The matrix ``(*lead, n, n)`` with these eigenvalues and eigenvectors."""
    return torch.diag_embed(values) if is_diagonal(vectors) else (vectors * values.unsqueeze(-2)) @ vectors.mT


def side(values: Tensor, vectors: Tensor) -> Tensor:
    """The factor with these eigenvalues and eigenvectors, in the shape of the vectors."""
    return values.unsqueeze(-2) if is_diagonal(vectors) else compose(values, vectors)


def trace(factor: Tensor) -> Tensor:
    """The trace of a factor, ``(*lead, 1, 1)``."""
    diagonal = factor.squeeze(-2) if is_diagonal(factor) else factor.diagonal(dim1=-2, dim2=-1)
    return diagonal.sum(-1)[..., None, None]


def values_in_basis(factor: Tensor, vectors: Tensor) -> Tensor:
    """The diagonal ``(*lead, n)`` of a factor in a basis of its kind, ``diag(Q^T F Q)``."""
    return factor.squeeze(-2) if is_diagonal(factor) else (vectors * (factor @ vectors)).sum(-2)


def power(values: Tensor, vectors: Tensor, exponent: float) -> Tensor:
    """The side with these positive eigenvalues to a power, in the shape of the vectors.

    Args:
        values: ``(*lead, n)``, > 0.
        vectors: ``(*lead, n, n)``, or ``(*lead, 1, n)`` for a diagonal.
        exponent: any number.
    """
    if is_diagonal(vectors):
        return values.pow(exponent).unsqueeze(-2)
    return _symmetric((vectors * values.pow(0.5 * exponent).unsqueeze(-2)).mT)


def multiply(v: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``left v right`` of ``(*batch, *lead, o, i)`` with sides, diagonal or not."""
    v = left.mT * v if is_diagonal(left) else left @ v
    return v * right if is_diagonal(right) else v @ right


def to_basis(v: Tensor, qs: Tensor, qa: Tensor) -> Tensor:
    """Coordinates of ``(*batch, *lead, o, i)``, a tensor of their own."""
    return _rotate(v, None if is_diagonal(qs) else qs.mT, None if is_diagonal(qa) else qa)


def from_basis(v: Tensor, qs: Tensor, qa: Tensor) -> Tensor:
    """Back from coordinates."""
    return _rotate(v, None if is_diagonal(qs) else qs, None if is_diagonal(qa) else qa.mT)


def quotient_kernel(
    v: Tensor, qs: Tensor, qa: Tensor, *values: Tensor
) -> Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor] | None:
    """Triton's ``(v, qs, qa, values, shift) -> from_basis(to_basis(v) / (values + shift))``, which does not check that
    the divisor is positive; ``None`` where it does not run.

    Args:
        v: ``(*lead, o, i)``; with further dimensions in front the kernel does not run.
        qs, qa: the basis; where a side is diagonal the kernel does not run.
        values: what the eigenvalues are made of.
    """
    if is_diagonal(qs) or is_diagonal(qa) or v.shape != (*qs.shape[:-1], qa.shape[-1]):
        return None
    kernel = fitting("eigenbasis_solve", v, qs, qa, *values)
    return None if kernel is None else lambda v, qs, qa, values, shift: kernel(v, qs, qa, values, shift=shift)


def diagonal_from_basis(values: Tensor, qs: Tensor, qa: Tensor) -> Tensor:
    """The diagonal, as a block vector, of the operator with ``values (*lead, o, i)`` on the basis."""
    return _rotate(values, None if is_diagonal(qs) else qs.square(), None if is_diagonal(qa) else qa.square().mT)


def input_variance(values: Tensor, qs: Tensor, qa: Tensor, a: Tensor, diagonal: bool) -> Tensor:
    """``(I (x) a)^T V (I (x) a)`` for the operator ``V`` with ``values (o, i)`` on the basis.

    Args:
        values, qs, qa: of one block, without leading dimensions.
        a: ``(B, i)``.
        diagonal: only its diagonal.

    Returns:
        ``(B, o, o)``, or ``(B, o)``.
    """
    along = (a if is_diagonal(qa) else a @ qa).square() @ values.mT
    if is_diagonal(qs):
        return along if diagonal else torch.diag_embed(along)
    return along @ qs.square().mT if diagonal else (qs * along.unsqueeze(-2)) @ qs.mT


def carry_over(values: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """The diagonal in the basis ``new = (QS, QA)`` of the operator with ``values`` on the basis ``old``."""
    left = None if is_diagonal(new[0]) else (new[0].mT @ old[0]).square_()
    right = None if is_diagonal(new[1]) else (old[1].mT @ new[1]).square_()
    return _rotate(values, left, right)


def dense_from_basis(values: Tensor, qs: Tensor, qa: Tensor) -> Tensor:
    """The operator with ``values`` on the basis as one ``(D, D)`` matrix, block-diagonal over ``lead``."""
    return full.dense_from_basis(values, _matrix(qs), _matrix(qa))


def _matrix(vectors: Tensor) -> Tensor:
    return torch.diag_embed(vectors.squeeze(-2)) if is_diagonal(vectors) else vectors


def _rotate(v: Tensor, left: Tensor | None, right: Tensor | None) -> Tensor:
    """``left v right``; ``None`` is the identity."""
    if left is None and right is None:
        return v.clone()
    v = v if left is None else left @ v
    return v if right is None else v @ right
