"""Powers of ``d I + U U^T`` with a number ``d >= 0``, on flat vectors, in double precision.

The eigenvalues are ``d + t^2`` on an orthonormal basis ``Q`` of the columns and ``d`` on its complement. ``Q`` and
``t`` come from the small matrix ``U^T U`` as long as squaring leaves enough digits to every ``t`` that matters, else
from a QR factorisation and a singular value decomposition of ``U``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg.eigh import eigh
from vogn.linalg.low_rank import function_on_basis, singular

TOLERATED = {torch.float64: 1e-11}
"""Relative error, by dtype of the vectors, up to which the basis is read off ``U^T U``; 1e-7 for all others."""


def power_solve(d: float, u: Tensor, v: Tensor, gram: Tensor, *, shift: float, exponent: float) -> Tensor:
    """``((d I + U U^T)^exponent + shift I)^-1 v``.

    Args:
        d: >= 0.
        u: ``U``, ``(D, r)``.
        v: ``(batch, D)``.
        gram: ``U^T U`` in double precision, ``(r, r)``.
        shift: added to the power; ``d^exponent + shift`` must be positive.
        exponent: > 0.

    Raises:
        NotPositiveDefiniteError: if ``d^exponent + shift`` is not positive.
    """
    outside = d**exponent + shift
    if not outside > 0:
        raise NotPositiveDefiniteError(
            f"the smallest eigenvalue of a low-rank curvature to the power {exponent:g} plus its shift is "
            f"{outside:.3g}; set weight_decay, damping or initial_curvature above 0"
        )

    def weight(squares: Tensor) -> Tensor:
        power = (squares + d).pow(exponent)
        return power / (power + shift)

    basis, small, squares = _eigenbasis(u, gram, weight, TOLERATED.get(v.dtype, 1e-7))
    values = outside / ((squares + d).pow(exponent) + shift)
    return (function_on_basis(basis, values, v.double(), small) / outside).to(v.dtype)


def pseudo_solve(d: float, u: Tensor, v: Tensor, gram: Tensor, *, cut: float, exponent: float) -> Tensor:
    """The power's inverse on the eigenvalues of ``d I + U U^T`` that are at least ``cut > 0``, zero on the others.

    Args:
        d, u, v, gram, exponent: see :func:`power_solve`.
        cut: the smallest eigenvalue that counts.
    """
    basis, small, squares = _eigenbasis(u, gram, lambda s: (s + d >= cut).to(s), TOLERATED.get(v.dtype, 1e-7))
    values, wide = squares + d, v.double()
    inverse = torch.where(values >= cut, values.clamp_min(cut).pow(-exponent), 0.0)
    if d >= cut:
        return (function_on_basis(basis, inverse * d**exponent, wide, small) / d**exponent).to(v.dtype)
    if small is None:
        return (((wide @ basis) * inverse) @ basis.T).to(v.dtype)
    return ((wide @ basis) @ ((small * inverse) @ small.T) @ basis.T).to(v.dtype)


def _eigenbasis(
    u: Tensor, gram: Tensor, weight: Callable[[Tensor], Tensor], tolerance: float
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Columns and ``small`` as in :func:`vogn.linalg.low_rank.function_on_basis`, and the squares ``t^2 (k,)``.

    ``weight`` says how much a ``t^2`` matters, from 0 to 1.
    """
    used = gram.diagonal() > 0
    columns, small = u[:, used].double(), gram[used][:, used]
    squares, rotation = eigh(small)
    rounding = torch.finfo(torch.float64).eps * squares[-1:]
    matters = weight(squares)
    error = rounding / squares.clamp_min(torch.finfo(torch.float64).tiny) * matters
    if bool((error > tolerance).any()):
        basis, t = singular(columns)
        return basis, None, t.square()
    inverse = torch.where((squares > 0) & (matters > 0), squares.rsqrt(), 0.0)
    return columns, rotation * inverse, squares
