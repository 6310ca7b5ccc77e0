"""The matrix ``diag(d) + U U^T`` with ``d > 0`` and few columns in ``U``, on flat vectors.

``d`` is ``(D,)``, ``U`` is ``(D, r)``, vectors are ``(batch, D)``. Inverses are computed in double precision:
they cancel where ``|U|^2`` is much larger than ``d``, and in single precision nothing would be left. With
``V = diag(d)^-1/2 U`` they go through the small matrix ``V^T V`` up to ``tr V^T V =`` :data:`SQUARED_LIMIT`; beyond,
where squaring ``V`` loses its weak directions, through an orthonormal basis ``Q`` of its columns and its singular
values ``t``: ``diag(d) + U U^T = diag(d)^1/2 (I + Q diag(t^2) Q^T) diag(d)^1/2``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import LinAlgError

from vogn.errors import FactorisationError, NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.linalg import tall
from vogn.linalg.cholesky import cholesky, cholesky_inverse_diagonal, cholesky_logdet, cholesky_solve
from vogn.linalg.eigh import eigh

SQUARED_LIMIT = 1e12
"""Largest ``tr V^T V`` for which double precision leaves enough digits to the inverse of ``I + V^T V``."""

_REMEDY = "set weight_decay, damping or initial_curvature above 0"


def apply(d: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``(diag(d) + U U^T) v``."""
    return torch.addmm(v * d, v @ u, u.T)


def solve(d: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``(diag(d) + U U^T)^-1 v`` in double precision: Woodbury's identity and one step of iterative refinement.

    The identity alone loses as many digits as ``|U|^2 / d`` has when ``v`` lies in the span of ``U``, which is where
    gradients lie: all of them in single precision.

    Raises:
        NotPositiveDefiniteError: if an element of ``d`` is not positive.
        FactorisationError: if the singular value decomposition of an extreme ``U`` does not converge.
    """
    gram, inner = _weighted(d, u, v)
    dtype = v.dtype
    if gram is None:
        root, scaled = _scaled(d, u)
        basis, t = singular(scaled)
        return (function_on_basis(basis, t.square().add_(1.0).reciprocal_(), v.double() / root) / root).to(dtype)
    refined = float(gram.diagonal().sum()) > _unrefined(dtype)
    factor = _capacitance_root(gram)
    x = torch.empty_like(v, dtype=torch.float64 if refined else dtype)
    inner = cholesky_solve(factor, inner)
    for part in tall.pieces(u):
        x[:, part] = torch.addmm(v[:, part].double(), inner, u[part].double().T, alpha=-1.0).div_(d[part])
    return _refine(d, u, v, x, factor).to(dtype) if refined else x


def _refine(d: Tensor, u: Tensor, v: Tensor, x: Tensor, factor: Tensor) -> Tensor:
    """One step of iterative refinement, in place; ``factor`` is the Cholesky factor of ``I + V^T V``."""
    coordinates, inner = (x.new_zeros((len(x), u.shape[1])) for _ in range(2))  # not views: autograd may record
    for part in tall.pieces(u):
        coordinates.addmm_(x[:, part], u[part].double())
    residual = torch.empty_like(x)
    for part in tall.pieces(u):
        wide = u[part].double()
        rest = torch.addcmul(v[:, part].double(), x[:, part], d[part], value=-1.0)
        residual[:, part] = torch.addmm(rest, coordinates, wide.T, alpha=-1.0)
        inner.addmm_(residual[:, part] / d[part], wide)
    inner = cholesky_solve(factor, inner)
    for part in tall.pieces(u):
        x[:, part] += torch.addmm(residual[:, part], inner, u[part].double().T, alpha=-1.0).div_(d[part])
    return x


def sample(d: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """A linear map ``S`` of the noise with ``S S^T = (diag(d) + U U^T)^-1``; dependent columns in ``U`` are harmless.

    ``S = diag(d)^-1/2 (I + V V^T)^-1/2``: a function of ``U U^T`` and ``d``, not of the columns. With
    ``V^T V = R diag(s) R^T`` the root is ``I - V R diag(c) R^T V^T``, ``c = (1 - (1 + s)^-1/2) / s = 1 / (q (1 + q))``
    where ``q = sqrt(1 + s)``: no limit has to be taken at ``s = 0``.

    Raises:
        NotPositiveDefiniteError: if an element of ``d`` is not positive.
        FactorisationError: if a decomposition does not converge.
    """
    gram, inner = _weighted(d, u, noise, power=0.5)
    if gram is None:
        root, scaled = _scaled(d, u)
        basis, t = singular(scaled)
        return (function_on_basis(basis, t.square().add_(1.0).rsqrt_(), noise.double()) / root).to(noise.dtype)
    s, rotation = eigh(gram)
    q = (1.0 + s).sqrt()
    inner = inner @ (rotation / (q * (1.0 + q))) @ rotation.T
    out = torch.empty_like(noise)
    for part in tall.pieces(u):
        scale = d[part].double().rsqrt()
        out[:, part] = torch.addcmul(noise[:, part].double(), inner @ u[part].double().T, scale, value=-1.0).mul_(scale)
    return out


def logdet(d: Tensor, u: Tensor) -> Tensor:
    """``log det (diag(d) + U U^T)``, a scalar."""
    root, scaled, gram = _squared(d, u)
    inner = singular(scaled)[1].square().log1p().sum() if gram is None else cholesky_logdet(_capacitance_root(gram))
    return (inner + 2.0 * root.log().sum()).to(d.dtype)


def inverse_diagonal(d: Tensor, u: Tensor) -> Tensor:
    """``diag((diag(d) + U U^T)^-1)``, ``(D,)``, computed in double precision.

    Never below ``1 / (d + diag(U U^T))``, which bounds it from below and keeps it positive under cancellation. With as
    many columns as parameters the full matrix is the cheaper and more accurate way.
    """
    root, scaled, gram = _squared(d, u)
    wide, diagonal = u.double(), d.double()
    if gram is None:
        basis, t = singular(scaled)
        squares = basis.square()
        outside = (1.0 - squares.sum(1)).clamp_min_(0.0) if basis.shape[1] < len(basis) else 0.0
        inner = (outside + squares @ t.square().add_(1.0).reciprocal_()) / diagonal
    elif u.shape[1] >= u.shape[0]:
        factor = cholesky(wide @ wide.T + diagonal.diag(), remedy=_REMEDY, rescue=True)
        return cholesky_inverse_diagonal(factor).to(d.dtype)
    else:
        w = (scaled / root.unsqueeze(-1)).T
        half = torch.linalg.solve_triangular(_capacitance_root(gram), w, upper=False)
        inner = diagonal.reciprocal() - half.square().sum(0)
    return torch.maximum(inner, (diagonal + wide.square().sum(-1)).reciprocal()).to(d.dtype)


def compress(u: Tensor, rows: Tensor, *, decay: float, weight: float, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-``rank`` part of ``M = decay U U^T + weight J^T J`` and the diagonal of the rest.

    The eigenproblem is solved on the smaller side: the columns ``[sqrt(decay) U, sqrt(weight) J^T]`` or the ``D``
    parameters.

    Args:
        u: ``U``, ``(*batch, D, r)`` with ``r >= rank`` or ``D`` columns.
        rows: ``J``, ``(*batch, n, D)``.
        decay: factor on ``U U^T``, >= 0.
        weight: factor on ``J^T J``, >= 0.
        rank: columns to keep, at most ``min(D, r + n)``.

    Returns:
        ``U' (*batch, D, rank)`` and ``diag(M) - diag(U' U'^T) (*batch, D)``, clamped at zero.

    Source: Mishkin, Kunstner, Nielsen, Schmidt, Khan 2018 (SLANG), section 3.
    """
    if u.shape[-1] + rows.shape[-2] > u.shape[-2]:
        full = decay * (u @ u.mT) + weight * (rows.mT @ rows)
        values, vectors = eigh(full)
        new = vectors[..., -rank:] * values[..., None, -rank:].sqrt()
        diagonal = full.diagonal(dim1=-2, dim2=-1)
    else:
        new = _merged(u, rows, decay, weight, rank)
        diagonal = decay * _squared_lengths(u, -1) + weight * _squared_lengths(rows, -2)
    return new, (diagonal - _squared_lengths(new, -1)).clamp_min_(0.0)


def merge(u: Tensor, rows: Tensor, *, decay: float, weight: float, rank: int) -> Tensor:
    """:func:`compress` without the diagonal of the rest."""
    if u.shape[-1] + rows.shape[-2] > u.shape[-2]:
        return compress(u, rows, decay=decay, weight=weight, rank=rank)[0]
    return _merged(u, rows, decay, weight, rank)


def _merged(u: Tensor, rows: Tensor, decay: float, weight: float, rank: int) -> Tensor:
    """The best ``rank`` columns of ``[sqrt(decay) U, sqrt(weight) J^T]``, through the inner products of all of them.

    The factors go to the small matrices: what is as long as the parameters is only read.
    """
    left, right = decay**0.5, weight**0.5
    cross = (left * right) * (u.mT @ rows.mT)
    gram = torch.cat(
        [torch.cat([decay * (u.mT @ u), cross], -1), torch.cat([cross.mT, weight * (rows @ rows.mT)], -1)], -2
    )
    vectors = eigh(gram)[1][..., -rank:]
    new = u @ (left * vectors[..., : u.shape[-1], :])
    return new.add_(rows.mT @ (right * vectors[..., u.shape[-1] :, :]))


def _squared_lengths(x: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(x, dim=dim).square_()


def _unrefined(dtype: torch.dtype) -> float:
    """Largest ``tr V^T V`` at which Woodbury's identity in double precision is exact to 1% of this type's rounding."""
    return 0.01 * torch.finfo(dtype).eps / torch.finfo(torch.float64).eps


def _weighted(d: Tensor, u: Tensor, v: Tensor, power: float = 1.0) -> tuple[Tensor | None, Tensor]:
    """``V^T V``, ``None`` where it would lose too much, and ``v diag(d)^-power U``, in double precision."""
    require_positive(d)
    gram, inner = tall.weighted(d, u, v, power)
    return _within_limit(gram), inner


def _within_limit(gram: Tensor) -> Tensor | None:
    trace = float(gram.diagonal().sum())
    if trace != trace:
        raise NonFiniteStatisticsError("the columns of a low-rank curvature hold NaN")
    return gram if trace <= SQUARED_LIMIT else None


def _scaled(d: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """``sqrt(d)`` and ``V``, in double precision."""
    root = d.double().sqrt()
    return root, u.double() / root.unsqueeze(-1)


def _squared(d: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """``sqrt(d)``, ``V`` and ``V^T V``, in double precision; ``None`` for the last where it would lose too much."""
    require_positive(d)
    root, scaled = _scaled(d, u)
    return root, scaled, _within_limit(scaled.T @ scaled)


def _capacitance_root(gram: Tensor) -> Tensor:
    """Cholesky factor of ``I + V^T V``, ``(r, r)``."""
    capacitance = gram.clone()
    capacitance.diagonal().add_(1.0)
    return cholesky(capacitance, remedy=_REMEDY, rescue=True)


def singular(scaled: Tensor) -> tuple[Tensor, Tensor]:
    """Orthonormal columns ``(D, k)`` and the singular values ``t (k,)`` of ``V``; rounding counts as zero.

    Raises:
        FactorisationError: if the decomposition does not converge.
        NonFiniteStatisticsError: if ``V`` holds infinity.
    """
    try:
        basis, triangle = torch.linalg.qr(scaled)
        left, t, _ = torch.linalg.svd(triangle, full_matrices=False)
    except LinAlgError as error:
        if not bool(scaled.isfinite().all()):
            raise NonFiniteStatisticsError("the columns of a low-rank curvature hold infinity") from error
        raise FactorisationError(
            f"the singular value decomposition of a low-rank curvature of rank {scaled.shape[1]} did not converge; "
            "raise weight_decay or lower the learning rate"
        ) from error
    rounding = len(scaled) * torch.finfo(scaled.dtype).eps * t[:1]
    return basis @ left, torch.where(t > rounding, t, 0.0)


def function_on_basis(basis: Tensor, values: Tensor, v: Tensor, small: Tensor | None = None) -> Tensor:
    """The operator that has ``values`` on the basis and is 1 on its complement, applied to each row of ``v``.

    Args:
        basis: orthonormal columns ``(D, k)``, or any columns ``(D, r)`` that ``small`` makes orthonormal.
        values: ``(k,)``.
        v: ``(batch, D)``.
        small: ``(r, k)``: the orthonormal columns are ``basis @ small``.
    """

    def coordinates(x: Tensor) -> Tensor:
        return x @ basis if small is None else (x @ basis) @ small

    def columns(c: Tensor) -> Tensor:
        return c if small is None else c @ small.T

    inside = coordinates(v)
    outside = torch.addmm(v, columns(inside), basis.T, alpha=-1.0)
    outside = torch.addmm(outside, columns(coordinates(outside)), basis.T, alpha=-1.0)  # twice: the first one cancels
    return torch.addmm(outside, columns(inside * values), basis.T)


def require_positive(d: Tensor) -> None:
    """Raise unless every element of the diagonal is positive."""
    smallest = d.min()
    if bool(smallest > 0):
        return
    if bool(smallest.isnan()):
        raise NonFiniteStatisticsError("the diagonal of a low-rank curvature holds NaN")
    raise NotPositiveDefiniteError(f"the diagonal of a low-rank curvature reaches {float(smallest):.3g}; {_REMEDY}")
