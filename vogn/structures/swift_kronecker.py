"""K-FAC whose factors are kept as rows (SKFAC): nothing of the size of a factor squared is formed or inverted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg import low_rank
from vogn.linalg.factor_rows import factor_rows
from vogn.linalg.factors import Sharing
from vogn.linalg.rows import AnyRows
from vogn.linalg.thin_sides import Side, decompose, diagonal_both, multiply_both, spectrum
from vogn.structures.base import Shift, Structure
from vogn.structures.evidence import blend, require_positive_without_shift
from vogn.structures.kronecker import LARGEST_PI, diagonal_sides
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class SwiftKronecker(Structure):
    """``C = S (x) A`` with ``A = U_a U_a^T + rest_a I`` and ``S = U_s U_s^T + rest_s I``, few columns in each ``U``.

    An update keeps the best ``rank`` directions of ``decay A + weight A_hat`` (old columns and new rows together, each
    with its weight) and spreads the trace of the others evenly over all directions, so the trace of a factor is exact
    at any rank, and all of it if ``rank`` is at least its rank; columns that are rounding are zero, the number of the
    others is the rank. With ``curvature_decay = 0`` and a rank of at least the
    number of rows the factors are those of the last batch, as in the paper. :meth:`refresh` orthogonalises the columns:
    with ``n`` rows and ``rank >= n`` everything is Woodbury's identity in the dimension of the rows, written in the
    eigenbasis of their Gram matrix, which also gives the inverse root exactly.

    Where a batch has more rows than the factor has columns, the factor is the smaller matrix, and is formed. A factor
    larger than ``max_dim`` keeps only its diagonal.

    Args:
        rank: columns of ``U_a`` and ``U_s``, at least 1; ``None`` for as many as the factor has.
        damping: ``"factored"``, ``(S + sqrt(shift) / pi I) (x) (A + pi sqrt(shift) I)`` with
            ``pi^2 = (tr A / i) / (tr S / o)`` as the paper and :class:`~vogn.structures.Kronecker`; or ``"exact"``,
            ``S (x) A + shift I``.
        sharing: ``"reduce"`` (averaged inputs, summed output gradients: one row per example) or ``"expand"`` (positions
            are further examples); see :func:`vogn.linalg.factors.kronecker_factors`.
        stride: keep every ``stride``-th position (spatial subsampling), at least 1; see
            :func:`vogn.linalg.factor_rows.factor_rows`.
        max_dim: largest factor that is more than its diagonal, >= 0.

    Raises:
        ValueError: if an option is out of range.

    Source: Tang, Jiang, Gong, Li, Wu, Yu, Wang, Wang 2021 (SKFAC), with the scaling of Eschenhagen et al. 2023 for
    ``sharing``. The memory over steps and the even rest are ours: the paper's factors forget each batch.
    """

    rank: int | None = 128
    damping: Literal["exact", "factored"] = "factored"
    sharing: Sharing = "reduce"
    stride: int = 1
    max_dim: int = 65536

    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "apply", "sample", "logdet", "inverse_diagonal", "eigenvalue_bounds"}
    )
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"a": 0, "g": 1, "positions": 0}
    REFRESHED: ClassVar[tuple[str, ...]] = ("QA", "x", "x_rest", "QS", "y", "y_rest")

    def __post_init__(self) -> None:
        self._check_option("damping", self.damping, ("exact", "factored"))
        self._check_option("sharing", self.sharing, ("expand", "reduce"))
        if self.rank is not None and self.rank < 1:
            raise ValueError(f"SwiftKronecker: rank={self.rank} must be at least 1, or None for all directions")
        if self.stride < 1:
            raise ValueError(f"SwiftKronecker: stride={self.stride} must be at least 1 (1: all positions)")
        if self.max_dim < 0:
            raise ValueError(f"SwiftKronecker: max_dim={self.max_dim} must be at least 0 (0: both factors diagonal)")

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """``U = 0``, ``rest = sqrt(initial)`` on both sides."""
        *lead, o, i = shape
        state: State = {}
        for size, columns, rest, basis, values in ((i, "UA", "A", "QA", "x"), (o, "US", "S", "QS", "y")):
            diagonal = size > self.max_dim
            kept = 0 if diagonal else min(size, self.rank or size)
            state[columns] = torch.zeros((*lead, size, kept), dtype=dtype, device=device)
            state[rest] = torch.full((*lead, size if diagonal else 1), initial**0.5, dtype=dtype, device=device)
            state[basis] = torch.eye(size, kept, dtype=dtype, device=device).repeat(*lead, 1, 1)
            state[values] = torch.full((*lead, kept), initial**0.5, dtype=dtype, device=device)
            state[f"{values}_rest"] = state[rest].clone()
        return state

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows of both factors, and the root of the number of inputs: what is concatenated adds up in squares."""
        diagonal = not state["US"].shape[-1], not state["UA"].shape[-1]
        a, g, positions = factor_rows(rows, self.sharing, self.stride, diagonal)
        return {"a": a.movedim(-2, 0), "g": g.movedim(-2, 0), "positions": positions.sqrt().unsqueeze(0)}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """Each factor is averaged on its own and keeps its best directions."""
        root = torch.linalg.vector_norm(observation["positions"], dim=0)
        tiny = torch.finfo(root.dtype).tiny ** 0.5
        a = observation["a"] / root.clamp_min(tiny)[..., None]
        new = dict(state)
        for columns, rest, rows in (("UA", "A", a), ("US", "S", observation["g"])):
            rows = rows.movedim(0, -2)
            if not state[columns].shape[-1]:
                new[rest] = blend(state[rest], rows.square().sum(-2), decay, weight)
                continue
            kept = state[columns].shape[-1]
            u, lost = low_rank.compress(state[columns], rows, decay=decay, weight=weight, rank=kept)
            new[columns] = _without_rounding(u)
            new[rest] = torch.add(lost.mean(-1, keepdim=True), state[rest], alpha=decay)
        return new

    def refresh(self, state: State) -> State:
        """Orthonormal bases of both sets of columns, and the eigenvalues on them."""
        a, s = decompose(state["UA"], state["A"]), decompose(state["US"], state["S"])
        new = {"QA": a.basis, "x": a.values, "x_rest": a.rest}
        return state | new | {"QS": s.basis, "y": s.values, "y_rest": s.rest}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Division on the bases and across them."""
        self._only_linear(exponent)
        return self._scale(state, v, shift, torch.reciprocal)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """Multiplication on the bases and across them."""
        left, right, rest = self._sides(state, shift)
        return multiply_both(v, left, right, lambda y, x: y * x + rest)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """The symmetric root."""
        return self._scale(state, noise, shift, torch.rsqrt)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """Sum of logarithms of the eigenvalues, each as often as it occurs."""
        left, right, function = self._eigenvalues(state, shift, torch.log)
        lead, total = left.basis.shape[:-2], left.basis.new_zeros(())
        for values, copies in spectrum(left, right, function):
            total = total + copies * values.expand(*lead, *values.shape[-2:]).sum()
        return total

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Sum of positive parts on the bases and across them."""
        left, right, function = self._eigenvalues(state, shift, torch.reciprocal)
        return diagonal_both(left, right, function)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues."""
        left, right, rest = self._sides(state, shift)
        values = [part for part, _ in spectrum(left, right, lambda y, x: y * x + rest)]
        return torch.stack([part.min() for part in values]).min(), torch.stack([part.max() for part in values]).max()

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``S (x) A`` with the damping of this configuration, block-diagonal over ``lead``."""
        left, right, rest = self._sides(state, shift)
        s, a = left.dense(), right.dense()
        pairs = zip(s.reshape(-1, *s.shape[-2:]), a.reshape(-1, *a.shape[-2:]), strict=True)
        dense = torch.block_diag(*(torch.kron(one, other) for one, other in pairs))
        dense.diagonal().add_(rest)
        return dense

    def restriction(self, shape: Shape) -> str:
        """Names the factors that are too large for more than a diagonal."""
        return diagonal_sides(shape, self.max_dim, type(self).__name__)

    def _sides(self, state: State, shift: Shift) -> tuple[Side, Side, float]:
        """Both sides with their damping, and what is left to add to the products."""
        shift = self._scalar_shift(shift)
        right = Side(state["QA"], state["x"], state["x_rest"])
        left = Side(state["QS"], state["y"], state["y_rest"])
        if self.damping == "exact":
            return left, right, shift
        ratio = (right.mean.sqrt() / left.mean.sqrt()).clamp(1.0 / LARGEST_PI, LARGEST_PI)
        pi = torch.where((right.mean > 0) & (left.mean > 0), ratio, 1.0)
        return left.plus(shift**0.5 / pi), right.plus(shift**0.5 * pi), 0.0

    def _eigenvalues(
        self, state: State, shift: Shift, function: Callable[[Tensor], Tensor]
    ) -> tuple[Side, Side, Callable[[Tensor, Tensor], Tensor]]:
        """Both sides, and a function of the eigenvalues of their damped product as one of those of the sides."""
        left, right, rest = self._sides(state, shift)
        return left, right, lambda y, x: function(require_positive_without_shift(y * x + rest, shift))

    def _scale(self, state: State, v: Tensor, shift: Shift, function: Callable[[Tensor], Tensor]) -> Tensor:
        left, right, pairwise = self._eigenvalues(state, shift, function)
        return multiply_both(v, left, right, pairwise)


def _without_rounding(u: Tensor) -> Tensor:
    """``U`` with zeros in the columns whose share of ``U U^T`` is a rounding error of the largest."""
    squares = u.square().sum(-2, keepdim=True)
    rounding = 10.0 * torch.finfo(u.dtype).eps * squares.amax(-1, keepdim=True)
    return torch.where(squares > rounding, u, 0.0)
