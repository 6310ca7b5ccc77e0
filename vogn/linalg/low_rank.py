"""The matrix ``diag(d) + U U^T`` with ``d > 0`` and few columns in ``U``, on flat vectors.

``d`` is ``(D,)``, ``U`` is ``(D, r)``, vectors are ``(batch, D)``. Inverses are computed in double precision:
they cancel where ``|U|^2`` is much larger than ``d``, and in single precision nothing would be left.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.linalg.cholesky import cholesky, cholesky_inverse_diagonal, cholesky_logdet, cholesky_solve
from vogn.linalg.eigh import eigh

_REMEDY = "set weight_decay, damping or initial_curvature above 0"


def apply(d: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``(diag(d) + U U^T) v``."""
    return torch.addmm(v * d, v @ u, u.T)


def solve(d: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """``(diag(d) + U U^T)^-1 v`` by Woodbury's identity and one step of iterative refinement, in double precision.

    The identity alone loses as many digits as ``|U|^2 / d`` has when ``v`` lies in the span of ``U``, which is where
    gradients lie: all of them in single precision.

    Raises:
        NotPositiveDefiniteError: if an element of ``d`` is not positive.
    """
    dtype, d, u, v = v.dtype, d.double(), u.double(), v.double()
    w = u / d.unsqueeze(-1)
    factor = _capacitance_root(d, u)

    def woodbury(r: Tensor) -> Tensor:
        return torch.addmm(r / d, cholesky_solve(factor, r @ w), w.T, alpha=-1.0)

    x = woodbury(v)
    return x.add_(woodbury(v - apply(d, u, x))).to(dtype)


def sample(d: Tensor, u: Tensor, noise: Tensor) -> Tensor:
    """A linear map ``S`` of the noise with ``S S^T = (diag(d) + U U^T)^-1``; dependent columns in ``U`` are harmless.

    ``S = diag(d)^-1/2 (I + V V^T)^-1/2`` with ``V = diag(d)^-1/2 U``: a function of ``U U^T`` and ``d``, not of the
    columns. With ``V^T V = R diag(s) R^T`` the root is ``I - V R diag(c) R^T V^T``,
    ``c = (1 - (1 + s)^-1/2) / s = 1 / (q (1 + q))`` where ``q = sqrt(1 + s)``: no limit has to be taken at ``s = 0``.

    Raises:
        NotPositiveDefiniteError: if an element of ``d`` is not positive.
    """
    _require_positive(d)
    dtype, root, noise = noise.dtype, d.double().sqrt(), noise.double()
    v = u.double() / root.unsqueeze(-1)
    s, basis = eigh(v.T @ v)
    q = (1.0 + s).sqrt()
    columns = v @ basis
    kept = torch.addmm(noise, (noise @ columns) / (q * (1.0 + q)), columns.T, alpha=-1.0)
    return (kept / root).to(dtype)


def logdet(d: Tensor, u: Tensor) -> Tensor:
    """``log det (diag(d) + U U^T)``, a scalar."""
    wide = d.double()
    return (cholesky_logdet(_capacitance_root(wide, u.double())) + wide.log().sum()).to(d.dtype)


def inverse_diagonal(d: Tensor, u: Tensor) -> Tensor:
    """``diag((diag(d) + U U^T)^-1)``, ``(D,)``, computed in double precision.

    Never below ``1 / (d + diag(U U^T))``, which bounds it from below and keeps it positive under cancellation. With as
    many columns as parameters the full matrix is the cheaper and more accurate way.
    """
    _require_positive(d)
    wide, diagonal = u.double(), d.double()
    if u.shape[1] >= u.shape[0]:
        factor = cholesky(wide @ wide.T + diagonal.diag(), remedy=_REMEDY)
        return cholesky_inverse_diagonal(factor).to(d.dtype)
    w = (wide / diagonal.unsqueeze(-1)).T
    half = torch.linalg.solve_triangular(_capacitance_root(diagonal, wide), w, upper=False)
    bound = (diagonal + wide.square().sum(-1)).reciprocal()
    return torch.maximum(diagonal.reciprocal() - half.square().sum(0), bound).to(d.dtype)


def compress(u: Tensor, rows: Tensor, *, decay: float, weight: float, rank: int) -> tuple[Tensor, Tensor]:
    """The best rank-``rank`` part of ``M = decay U U^T + weight J^T J`` and the diagonal of the rest.

    The eigenproblem is solved on the smaller side: the columns ``[sqrt(decay) U, sqrt(weight) J^T]`` or the ``D``
    parameters.

    Args:
        u: ``U``, ``(D, r)`` with ``r >= rank`` or ``D`` columns.
        rows: ``J``, ``(n, D)``.
        decay: factor on ``U U^T``, >= 0.
        weight: factor on ``J^T J``, >= 0.
        rank: columns to keep, at most ``min(D, r + n)``.

    Returns:
        ``U' (D, rank)`` and ``diag(M) - diag(U' U'^T) (D,)``, clamped at zero.

    Source: Mishkin, Kunstner, Nielsen, Schmidt, Khan 2018 (SLANG), section 3.
    """
    if u.shape[1] + rows.shape[0] > u.shape[0]:
        full = decay * (u @ u.T) + weight * (rows.T @ rows)
        values, vectors = eigh(full)
        new = vectors[:, -rank:] * values[-rank:].sqrt()
        diagonal = full.diagonal()
    else:
        old, fresh = decay**0.5 * u, weight**0.5 * rows
        cross = old.T @ fresh.T
        gram = torch.cat([torch.cat([old.T @ old, cross], 1), torch.cat([cross.T, fresh @ fresh.T], 1)])
        vectors = eigh(gram)[1][:, -rank:]
        new = old @ vectors[: u.shape[1]] + fresh.T @ vectors[u.shape[1] :]
        diagonal = old.square().sum(1) + fresh.square().sum(0)
    return new, (diagonal - new.square().sum(1)).clamp_min_(0.0)


def _capacitance_root(d: Tensor, u: Tensor) -> Tensor:
    """Cholesky factor of ``I + U^T diag(d)^-1 U``, ``(r, r)``."""
    _require_positive(d)
    v = u / d.sqrt().unsqueeze(-1)
    capacitance = v.T @ v
    capacitance.diagonal().add_(1.0)
    return cholesky(capacitance, remedy=_REMEDY)


def _require_positive(d: Tensor) -> None:
    """Raise unless every element of the diagonal is positive."""
    smallest = d.min()
    if bool(smallest > 0):
        return
    if bool(smallest.isnan()):
        raise NonFiniteStatisticsError("the diagonal of a low-rank curvature holds NaN")
    raise NotPositiveDefiniteError(f"the diagonal of a low-rank curvature reaches {float(smallest):.3g}; {_REMEDY}")
