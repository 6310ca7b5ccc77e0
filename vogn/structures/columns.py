"""What all structures of the form ``diag(d) + U U^T`` have in common: their operators."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg import low_rank, woodbury
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.types import Observation, State


class ColumnStructure(Structure):
    """``C (+) shift = diag(d) + U U^T`` with few columns in ``U``. Subclasses say what ``d`` and ``U`` are."""

    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"J": 1}

    @abstractmethod
    def flat(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """``d``, shift included, as a block vector, and ``U (D, r)``."""

    def number(self, state: State, shift: Shift) -> float | None:
        """``d`` where it is the same number everywhere and single precision may do (:mod:`vogn.linalg.woodbury`)."""
        return None

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows themselves, ``(K N, D)``."""
        return {"J": rows.dense().flatten(2).flatten(0, 1)}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Woodbury's identity with one refinement."""
        self._only_linear(exponent)
        (d, u), number = self.flat(state, shift), self.number(state, shift)
        flat = v.reshape(-1, len(u))
        found = low_rank.solve(d.flatten(), u, flat) if number is None else woodbury.solve(number, u, flat)
        return found.reshape(v.shape)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``d v + U U^T v``."""
        d, u = self.flat(state, shift)
        return low_rank.apply(d.flatten(), u, v.reshape(-1, len(u))).reshape(v.shape)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """One eigendecomposition of ``r x r``, safe for dependent columns."""
        (d, u), number = self.flat(state, shift), self.number(state, shift)
        flat = noise.reshape(-1, len(u))
        found = low_rank.sample(d.flatten(), u, flat) if number is None else woodbury.sample(number, u, flat)
        return found.reshape(noise.shape)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``sum log d`` plus the logarithmic determinant of an ``r x r`` matrix."""
        (d, u), number = self.flat(state, shift), self.number(state, shift)
        return low_rank.logdet(d.flatten(), u) if number is None else woodbury.logdet(number, u)

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Woodbury's identity."""
        d, u = self.flat(state, shift)
        return low_rank.inverse_diagonal(d.flatten(), u).reshape(d.shape)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """From the smaller one of ``U^T U`` and ``U U^T``: attained where ``d`` is one number, else bounds."""
        d, u = self.flat(state, shift)
        if not u.shape[1]:
            return d.min(), d.max()
        spectrum = torch.linalg.eigvalsh(u.T @ u if u.shape[1] < len(u) else u @ u.T).clamp_min(0.0)
        return (d.min() + spectrum[0] if u.shape[1] >= len(u) else d.min()), d.max() + spectrum[-1]

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``U U^T + diag(d)``."""
        d, u = self.flat(state, shift)
        return u @ u.T + d.flatten().diag()
