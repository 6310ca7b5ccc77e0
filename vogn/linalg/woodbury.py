"""The matrix ``shift I + U U^T`` through the inner products of its columns: one number on the diagonal.

``U`` is ``(D, n)``, vectors are ``(batch, D)``. Long vectors keep their precision and are passed over few times; only
the ``n x n`` matrix is factorised in double precision. Where ``|U|^2 / shift`` is beyond :func:`limit`, cancellation
would eat the digits, and :mod:`vogn.linalg.low_rank` does the work in double precision throughout.

A caller that keeps the inner products passes them as ``gram (n, n)``, ``U`` and the vectors in double precision too;
they may go to :data:`vogn.linalg.low_rank.SQUARED_LIMIT`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg import low_rank
from vogn.linalg.cholesky import cholesky, cholesky_logdet, cholesky_solve
from vogn.linalg.eigh import eigh

_REMEDY = "set weight_decay, damping or initial_curvature above 0"


def limit(dtype: torch.dtype) -> float:
    """Largest ``tr U^T U / shift`` for which an inverse leaves half of the digits: ``eps^-1/2``.

    A root loses only as many digits as the square root of that ratio has: it may go to the square of this limit.
    """
    return float(torch.finfo(dtype).eps ** -0.5)


def solve(shift: float, u: Tensor, v: Tensor, gram: Tensor | None = None) -> Tensor:
    """``(shift I + U U^T)^-1 v``: Woodbury's identity and one step of iterative refinement.

    A ``gram``, which was rounded apart from ``U``, takes a second one.

    Raises:
        NotPositiveDefiniteError: if the shift is not positive.
    """
    refinements = 1 if gram is None else 2
    gram = _gram(shift, u, gram)
    if gram is None:
        return low_rank.solve(_diagonal(shift, u), u, v)
    gram.diagonal().add_(shift)
    factor = cholesky(gram, remedy=_REMEDY, rescue=True)

    def woodbury(r: Tensor) -> Tensor:
        inner = cholesky_solve(factor, (r @ u).double()).to(r.dtype)
        return torch.addmm(r, inner, u.T, alpha=-1.0).div_(shift)

    x = woodbury(v)
    for _ in range(refinements):
        x.add_(woodbury(torch.addmm(v - shift * x, x @ u, u.T, alpha=-1.0)))
    return x


def sample(shift: float, u: Tensor, noise: Tensor, gram: Tensor | None = None) -> Tensor:
    """A linear map ``S`` of the noise with ``S S^T = (shift I + U U^T)^-1``; see :func:`vogn.linalg.low_rank.sample`.

    Raises:
        NotPositiveDefiniteError: if the shift is not positive.
    """
    gram = _gram(shift, u, gram, power=2)
    if gram is None:
        return low_rank.sample(_diagonal(shift, u), u, noise)
    s, rotation = eigh(gram)
    q = (1.0 + s.clamp_min(0.0) / shift).sqrt()
    inner = ((noise @ u).double() @ rotation / (shift * q * (1.0 + q))) @ rotation.T
    return torch.addmm(noise, inner.to(noise.dtype), u.T, alpha=-1.0).mul_(shift**-0.5)


def logdet(shift: float, u: Tensor, gram: Tensor | None = None) -> Tensor:
    """``log det (shift I + U U^T)``, a scalar.

    Raises:
        NotPositiveDefiniteError: if the shift is not positive.
    """
    gram = _gram(shift, u, gram)
    if gram is None:
        return low_rank.logdet(_diagonal(shift, u), u)
    gram.div_(shift).diagonal().add_(1.0)
    inner = cholesky_logdet(cholesky(gram, remedy=_REMEDY, rescue=True))
    return (inner + len(u) * torch.tensor(shift, dtype=torch.float64).log()).to(u.dtype)


def _gram(shift: float, u: Tensor, gram: Tensor | None, power: int = 1) -> Tensor | None:
    """``U^T U`` in double precision, in new memory; ``None`` if it would not do."""
    if not shift > 0.0:
        raise NotPositiveDefiniteError(f"a curvature of low rank has no inverse with a shift of {shift:.3g}; {_REMEDY}")
    if gram is None:
        gram, most = (u.T @ u).double(), limit(u.dtype) ** power
    else:
        gram, most = gram.clone(), low_rank.SQUARED_LIMIT
    return gram if float(gram.diagonal().sum()) <= most * shift else None


def _diagonal(shift: float, u: Tensor) -> Tensor:
    return u.new_full((len(u),), shift)
