"""Curvature in sample space, compressed to a few representative rows (HyLo, the variant that is a Gaussian's)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg import low_rank, sample_space
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.structures.gram import Gram
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class CompressedGram(Structure):
    """``C (+) shift = lambda I + U_S P^T (I + Res / lambda)^-1 P U_S^T`` with ``lambda = scale + shift``.

    ``U_S`` are representative columns among all weighted rows ``U``, ``P = K_:S K_SS^-1`` writes all rows as
    combinations of them, and ``Res = K - P K_SS P^T`` is what that misses of ``K = U^T U``. This is the matrix behind
    HyLo's direction ``(g - U_S M U_S^T g) / lambda``, ``Y = P^T (Res + lambda I)^-1 P``, ``M = Y - Y (I + K_SS Y)^-1
    K_SS Y``, with the Nystrom ``P``: it is symmetric positive definite, so it has a Gaussian; that of HyLo's own
    interpolation is not (:class:`InterpolativeGram`). It is exact, ``U U^T + lambda I``, if ``rank`` is at least the
    rank of ``U``. Otherwise ``C`` grows with ``lambda``, from at least ``U_S U_S^T`` to the part of ``U U^T``
    inside the span of ``U_S``; there is none outside.

    With ``curvature_decay > 0`` the old curvature, as it is at the shift of the update, enters as further rows. The
    shift is one number, because ``C`` depends on it.

    The state holds ``U`` as ``(*shape, r)``, ``Q^T P (n, r)`` and ``R (n)`` with ``Res = Q diag(R^2) Q^T``, all
    padded with zeros to the most that the window allows, ``columns () = r`` and ``scale ()``.

    Args:
        rank: representatives: a whole number of at least 1, or a share in (0, 1] of the rows at hand (rounded down, at
            least one). Dependent rows are never kept.
        window: rows that are compressed, at least 1; more of them are merged into the best ones of that number first.

    Raises:
        ValueError: if the rank or the window is out of range.

    Under data parallelism the rows of all processes are gathered first and compressed together; the paper compresses
    before it communicates.

    Source: Mu, Soori, Can, Gurbuzbalaban, Dehnavi (2022), "HyLo: a hybrid low-rank natural gradient descent method",
    with the projection of Williams and Seeger (2001).
    """

    rank: int | float = 0.1
    window: int = 256

    SUPPORTS: ClassVar[frozenset[str]] = Gram.SUPPORTS - {"tensor_shift"}
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"J": 1}

    def __post_init__(self) -> None:
        sample_space.number_of_columns(self.rank, 1, type(self).__name__)
        if self.window < 1:
            raise ValueError(f"{type(self).__name__}: window={self.window} must be at least 1")

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No columns."""
        count = sample_space.number_of_columns(self.rank, self.window, type(self).__name__)
        state = Gram(window=count).init(shape, initial=initial, dtype=dtype, device=device)
        zeros = state["U"].new_zeros
        return state | {"P": zeros(self.window, state["U"].shape[-1]), "R": zeros(self.window)}

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows themselves, ``(K N, D)``."""
        return Gram().observe(state, rows)

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """The representatives among the weighted rows."""
        old = Gram.columns(self._explicit(state, shift))
        rows = sample_space.weighted_rows(old, observation["J"], decay=decay, weight=weight)
        if len(rows) > self.window:
            rank = min(self.window, rows.shape[1])
            rows = low_rank.compress(rows[:0].T, rows, decay=1.0, weight=1.0, rank=rank)[0].T
        wide = rows.double()
        count = min(sample_space.number_of_columns(self.rank, len(rows), type(self).__name__), state["U"].shape[-1])
        index, p, r = sample_space.representatives(wide @ wide.T, count)
        new = {key: torch.zeros_like(state[key]) for key in ("U", "P", "R")}
        new["U"][..., : len(index)] = rows[index].T.reshape(*state["U"].shape[:-1], len(index))
        new["P"][: len(rows), : len(index)] = p
        new["R"][: len(rows)] = r
        return new | {"columns": torch.tensor(len(index)), "scale": decay * state["scale"]}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Woodbury's identity with one refinement."""
        self._only_linear(exponent)
        return Gram().solve(self._explicit(state, shift), v, shift)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(C (+) shift) v``."""
        return Gram().apply(self._explicit(state, shift), v, shift)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """One eigendecomposition of an ``r x r`` matrix."""
        return Gram().sample(self._explicit(state, shift), noise, shift)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``D log lambda`` plus the logarithmic determinant of an ``r x r`` matrix."""
        return Gram().logdet(self._explicit(state, shift), shift)

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Woodbury's identity."""
        return Gram().inverse_diagonal(self._explicit(state, shift), shift)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues."""
        return Gram().eigenvalue_bounds(self._explicit(state, shift), shift)

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``C (+) shift``; see the class."""
        return Gram().to_dense(self._explicit(state, shift), shift)

    def _explicit(self, state: State, shift: Shift) -> State:
        """The state of the :class:`Gram` that is the same matrix at this shift: ``U = U_S T^T`` with
        ``T^T T = P^T (I + Res / lambda)^-1 P``."""
        damping = state["scale"].double() + self._scalar_shift(shift)
        missed = state["R"].double().square()
        share = torch.where(missed > 0, damping / (damping + missed), 1.0).clamp_min(0.0)
        u = Gram.columns(state)
        columns = sample_space.merge_columns(u, share.sqrt().unsqueeze(1) * state["P"][:, : u.shape[1]].double())
        return {**state, "U": columns.reshape(*state["U"].shape[:-1], u.shape[1])}
