"""Fewer columns for ``U U^T``: a basis of representative columns, a random draw of columns, a sketch of coordinates.

``U`` is ``(D, n)`` with one column per example, ``K = U^T U``. The decompositions of ``K`` are sequential and small:
they run in double precision on the CPU.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vogn.linalg.cholesky import cholesky, cholesky_solve
from vogn.linalg.eigh import eigh
from vogn.linalg.low_rank import compress, require_positive

_REMEDY = "set weight_decay, damping or initial_curvature above 0"


def number_of_columns(rank: int | float, rows: int, owner: str) -> int:
    """How many of ``rows`` rows a rank means: a whole number itself, a share in (0, 1] that part, at least one.

    Raises:
        ValueError: if the rank is neither.
    """
    if isinstance(rank, int) and rank >= 1:
        return min(rank, rows)
    if isinstance(rank, float) and 0.0 < rank <= 1.0:
        return max(1, math.floor(rank * rows + 1e-9))
    raise ValueError(f"{owner}: rank={rank!r} must be a whole number of at least 1, or a share of rows in (0.0, 1.0]")


def weighted_rows(u: Tensor, rows: Tensor, *, decay: float, weight: float, most: int | None = None) -> Tensor:
    """``[sqrt(decay) U, sqrt(weight) J^T]^T``, ``(n, D)``; without ``U`` where the decay is zero.

    Args:
        u: ``U``, ``(D, r)``.
        rows: ``J``, ``(m, D)``.
        decay: factor on ``U U^T``, >= 0.
        weight: factor on ``J^T J``, >= 0.
        most: where there are more rows, the best ones of that number (or of ``D``) stand for them; ``None``: all.
    """
    new = weight**0.5 * rows
    both = torch.cat([decay**0.5 * u.T, new]) if decay else new
    if most is None or len(both) <= most:
        return both
    return compress(both[:0].T, both, decay=1.0, weight=1.0, rank=min(most, both.shape[1]))[0].T


def merge_columns(u: Tensor, p: Tensor) -> Tensor:
    """Columns ``V (D, r)`` with ``V V^T = U P^T P U^T``.

    Args:
        u: ``U``, ``(D, r)``.
        p: ``P``, ``(n, r)`` with ``n >= r``, in double precision.
    """
    return (u.double() @ torch.linalg.qr(p)[1].T).to(u)


def pivoted_cholesky(gram: Tensor, rank: int, *, tolerance: float = 0.0) -> tuple[Tensor, Tensor]:
    """Greedy representatives: always the column of ``U`` with the largest part outside the span of those before it.

    Args:
        gram: ``K``, symmetric positive semi-definite, ``(n, n)``.
        rank: representatives at most.
        tolerance: squared parts below this share of the largest ``K_nn`` (or below rounding) count as zero.

    Returns:
        Their indices ``S (r,)`` and ``L (r, n)`` with ``L[:, S]`` upper triangular and ``L^T L = K_:S K_SS^-1 K_S:``.

    Source: Harbrecht, Peters, Schneider (2012), "On the low-rank approximation by the pivoted Cholesky decomposition".
    """
    residual = gram.diagonal().clone()
    size = residual.numel()
    rank = min(rank, size)
    factor = gram.new_zeros((rank, size))
    chosen: list[int] = []
    limit = max(tolerance, size * torch.finfo(gram.dtype).eps) * float(residual.max()) if size else 0.0
    for k in range(rank):
        pivot = int(residual.argmax())
        if not float(residual[pivot]) > limit:
            break
        row = (gram[pivot] - factor[:k, pivot] @ factor[:k]) / residual[pivot].sqrt()
        row[chosen] = 0.0
        factor[k] = row
        residual = (residual - row.square()).clamp_min_(0.0)
        residual[pivot] = 0.0
        chosen.append(pivot)
    index = torch.tensor(chosen, dtype=torch.int64, device=gram.device)
    return index, factor[: len(chosen)]


def representatives(gram: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns ``S`` that stand for all, ``U ~ U_S P^T`` with ``P = K_:S K_SS^-1``, and what they miss.

    ``K - P K_SS P^T = Q diag(r^2) Q^T`` is a Schur complement, so it is positive semi-definite.

    Args:
        gram: ``K``, ``(n, n)``.
        rank: columns at most; linearly dependent ones are never chosen.

    Returns:
        ``S (k,)``, ``Q^T P (n, k)`` and ``r (n,)``, on the device and in the dtype of ``K``.

    Source: Williams and Seeger (2001), "Using the Nystrom Method to Speed Up Kernel Machines".
    """
    k = gram.double().cpu()
    index, factor = pivoted_cholesky(k, rank)
    p = torch.linalg.solve_triangular(factor[:, index], factor, upper=True).T
    values, q = eigh(k - factor.T @ factor)
    # what is not missed must be zero: where there is no shift, the least residual counts as much as a large one
    rounding = 8 * k.shape[0] * torch.finfo(k.dtype).eps * k.diagonal().sum()
    values = torch.where(values > rounding, values, 0.0)
    return index.to(gram.device), (q.T @ p).to(gram), values.sqrt().to(gram)


def interpolation(gram: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Columns ``S`` of ``K`` with ``K ~ K_:S P^T`` by least squares, ``P_S = I``, and the rest ``K - K_:S P^T``.

    The rest is not symmetric, and neither is anything made of it. Columns are picked by their parts outside the span
    of those before: pivoted QR of ``U``. Parts below 1e-10 of the largest squared column are dropped, because ``K``
    squares the condition number of ``U``.

    Args:
        gram: ``K``, ``(n, n)``.
        rank: columns at most.

    Returns:
        ``S (k,)``, ``P (n, k)`` and the rest ``(n, n)``, on the device and in the dtype of ``K``.

    Source: Mu, Soori, Can, Gurbuzbalaban, Dehnavi (2022), "HyLo", section on KID; with pivots.
    """
    k = gram.double().cpu()
    index, _ = pivoted_cholesky(k, rank, tolerance=1e-10)
    columns = k[:, index]
    q, r = torch.linalg.qr(columns)
    p = torch.linalg.solve_triangular(r, q.T @ k, upper=True).T
    p[index] = torch.eye(len(index), dtype=k.dtype)
    return index.to(gram.device), p.to(gram), (k - columns @ p.T).to(gram)


def importance_draw(rows: Tensor, uniform: Tensor) -> Tensor:
    """Rows drawn with replacement, ``p_n ~ |J_n|^2``, and scaled by ``1 / sqrt(k p_n)``: ``E[S^T S] = J^T J``.

    A row that is drawn ``m`` times comes once, scaled by ``sqrt(m)``.

    Args:
        rows: ``J``, ``(n, D)``.
        uniform: ``k`` independent numbers in [0, 1), double precision.

    Returns:
        ``S``, ``(at most k, D)``.

    Source: Drineas, Kannan, Mahoney (2006), "Fast Monte Carlo Algorithms for Matrices I", section 4.
    """
    squares = rows.double().square().sum(1)
    total = squares.cumsum(0)
    drawn = torch.searchsorted(total, uniform.to(rows.device) * total[-1], right=True).clamp_max_(len(rows) - 1)
    index, times = torch.unique(drawn, return_counts=True)
    scale = (times * (total[-1] / len(uniform)) / squares[index]).sqrt()
    return rows[index] * torch.where(squares[index] > 0, scale, 0.0).to(rows).unsqueeze(1)


def sketched_apply(d: Tensor, u: Tensor, omega: Tensor, v: Tensor) -> Tensor:
    """``(diag(d) + U U^T Pi) v`` with ``Pi = (D / q) sum_{j in Omega} e_j e_j^T``, which has mean ``I``.

    Args:
        d: ``(D,)``.
        u: ``(D, n)``.
        omega: ``Omega``, ``q`` of the ``D`` coordinates.
        v: ``(batch, D)``.
    """
    ratio = u.shape[0] / omega.numel()
    return torch.addmm(v * d, v[:, omega] @ u[omega], u.T, alpha=ratio)


def sketched_solve(d: Tensor, u: Tensor, omega: Tensor, v: Tensor) -> Tensor:
    """``(diag(d) + U U^T Pi)^-1 v`` in double precision: Woodbury's identity and one refinement.

    All inner products run over the coordinates ``Omega``; only the last product, ``U c``, runs over all.

    Raises:
        NotPositiveDefiniteError: if ``d`` is not positive.
    """
    require_positive(d)
    dtype, d, u, v = v.dtype, d.double(), u.double(), v.double()
    ratio = u.shape[0] / omega.numel()
    narrow = u[omega] / d[omega].unsqueeze(-1)
    capacitance = ratio * (u[omega].T @ narrow)
    capacitance.diagonal().add_(1.0)
    factor = cholesky(capacitance, remedy=_REMEDY, rescue=True)
    wide = u / d.unsqueeze(-1)

    def woodbury(r: Tensor) -> Tensor:
        return torch.addmm(r / d, cholesky_solve(factor, ratio * (r[:, omega] @ narrow)), wide.T, alpha=-1.0)

    x = woodbury(v)
    return x.add_(woodbury(v - sketched_apply(d, u, omega, x))).to(dtype)
