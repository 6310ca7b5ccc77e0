"""Many small matrices ``shift I + U_k U_k^T`` at once, one for every unit ``k``, through the inner products of columns.

``U`` is ``(units, D, n)``, its inner products ``gram`` are ``(units, n, n)``, vectors are ``(units, batch, D)``, all in
double precision; the shift is one number. Where the largest trace of ``U_k^T U_k`` is beyond ``low_rank.SQUARED_LIMIT``
times the shift, where inner products lose the weak directions, the singular values of ``U`` do the work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg.cholesky import cholesky, cholesky_inverse_diagonal, cholesky_logdet
from vogn.linalg.eigh import eigh
from vogn.linalg.low_rank import SQUARED_LIMIT

_REMEDY = "set weight_decay, damping or initial_curvature above 0"
_REFINEMENTS = 2


def apply(shift: float, u: Tensor, v: Tensor) -> Tensor:
    """``(shift I + U U^T) v``."""
    return torch.baddbmm(v, v @ u, u.mT, beta=shift)


def solve(shift: float, u: Tensor, gram: Tensor, v: Tensor) -> Tensor:
    """``(shift I + U U^T)^-1 v``, refined iteratively: Woodbury's identity, or the ``D x D`` matrices if these are
    smaller.

    Raises:
        NotPositiveDefiniteError: if the shift is not positive.
    """
    _require_positive(shift)
    if not _squared(shift, gram):
        return _on_basis(shift, u, v, lambda t: (1.0 + t.square()).reciprocal()) / shift
    if u.shape[-1] >= u.shape[-2]:
        dense = _dense_root(shift, u)
    else:
        inner = gram.clone()
        inner.diagonal(dim1=-2, dim2=-1).add_(shift)
        factor = cholesky(inner, remedy=_REMEDY, rescue=True)

    def invert(r: Tensor) -> Tensor:
        if u.shape[-1] >= u.shape[-2]:
            return torch.cholesky_solve(r.mT, dense).mT
        return torch.baddbmm(r, torch.cholesky_solve((r @ u).mT, factor).mT, u.mT, alpha=-1.0) / shift

    x = invert(v)
    for _ in range(_REFINEMENTS):
        x = x + invert(v - apply(shift, u, x))
    return x


def sample(shift: float, u: Tensor, gram: Tensor, noise: Tensor) -> Tensor:
    """``(shift I + U U^T)^-1/2 noise``; see :func:`vogn.linalg.low_rank.sample`.

    Raises:
        NotPositiveDefiniteError: if the shift is not positive.
    """
    _require_positive(shift)
    if not _squared(shift, gram):
        return _on_basis(shift, u, noise, lambda t: (1.0 + t.square()).rsqrt()) * shift**-0.5
    values, rotation = eigh(gram)
    q = (1.0 + values / shift).sqrt()
    inner = ((noise @ u) @ rotation / (shift * q * (1.0 + q)).unsqueeze(-2)) @ rotation.mT
    return torch.baddbmm(noise, inner, u.mT, alpha=-1.0) * shift**-0.5


def logdet(shift: float, u: Tensor, gram: Tensor) -> Tensor:
    """The sum of ``log det (shift I + U_k U_k^T)`` over the units, a scalar.

    Raises:
        NotPositiveDefiniteError: if the shift is not positive.
    """
    _require_positive(shift)
    outside = u.shape[0] * u.shape[1] * torch.tensor(shift, dtype=u.dtype, device=u.device).log()
    if not _squared(shift, gram):
        return outside + torch.linalg.svdvals(u / shift**0.5).square().log1p().sum()
    inner = gram / shift
    inner.diagonal(dim1=-2, dim2=-1).add_(1.0)
    return outside + cholesky_logdet(cholesky(inner, remedy=_REMEDY, rescue=True))


def inverse_diagonal(shift: float, u: Tensor, gram: Tensor) -> Tensor:
    """The diagonals of the inverses, ``(units, D)``; positive, for ``1 / (shift + |u_j|^2)`` bounds them from below.

    Raises:
        NotPositiveDefiniteError: if the shift is not positive.
    """
    _require_positive(shift)
    if u.shape[-1] >= u.shape[-2]:
        found = cholesky_inverse_diagonal(_dense_root(shift, u))
    elif _squared(shift, gram):
        inner = gram.clone()
        inner.diagonal(dim1=-2, dim2=-1).add_(shift)
        half = torch.linalg.solve_triangular(cholesky(inner, remedy=_REMEDY, rescue=True), u.mT, upper=False)
        found = (1.0 - half.square().sum(-2)) / shift
    else:
        basis, t, _ = torch.linalg.svd(u / shift**0.5, full_matrices=False)
        squares = basis.square()
        outside = (1.0 - squares.sum(-1)).clamp_min(0.0)
        found = (outside + (squares @ (1.0 + t.square()).reciprocal().unsqueeze(-1)).squeeze(-1)) / shift
    return torch.maximum(found, (shift + u.square().sum(-1)).reciprocal())


def _dense_root(shift: float, u: Tensor) -> Tensor:
    """Cholesky factors of the ``D x D`` matrices."""
    dense = u @ u.mT
    dense.diagonal(dim1=-2, dim2=-1).add_(shift)
    return cholesky(dense, remedy=_REMEDY, rescue=True)


def _squared(shift: float, gram: Tensor) -> bool:
    return float(gram.diagonal(dim1=-2, dim2=-1).sum(-1).max()) <= SQUARED_LIMIT * shift


def _on_basis(shift: float, u: Tensor, v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """The operator with ``function(t)`` on the left singular vectors of ``U / sqrt(shift)``, 1 on their complement."""
    basis, t, _ = torch.linalg.svd(u / shift**0.5, full_matrices=False)
    inside = v @ basis
    outside = torch.baddbmm(v, inside, basis.mT, alpha=-1.0)
    outside = torch.baddbmm(outside, outside @ basis, basis.mT, alpha=-1.0)  # twice: the first one cancels
    return torch.baddbmm(outside, inside * function(t).unsqueeze(-2), basis.mT)


def _require_positive(shift: float) -> None:
    """Raise unless the shift is positive."""
    if not shift > 0:
        raise NotPositiveDefiniteError(
            f"the smallest eigenvalue of a window of gradients plus its shift is {shift:.3g}; {_REMEDY}"
        )
