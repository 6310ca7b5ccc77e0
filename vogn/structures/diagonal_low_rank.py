"""A diagonal plus a low-rank matrix (SLANG)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg import low_rank
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class DiagonalLowRank(Structure):
    """``C = diag(d) + U U^T``; the block is often a whole network (``JoinedRows``).

    An update keeps the best ``rank`` directions of ``decay U U^T + weight J^T J`` and adds the diagonal of the rest to
    ``d``, so the diagonal of ``C`` is exact at any rank and all of ``C`` is exact if ``rank`` is at least its rank.
    The state holds ``d`` as a block vector and ``U`` as ``(*shape, columns)`` with ``columns = min(rank, D)``.

    Args:
        rank: columns of ``U``, at least 1.

    Raises:
        ValueError: if the rank is not positive.

    Source: Mishkin, Kunstner, Nielsen, Schmidt, Khan 2018 (SLANG), section 3, with an exact small eigenproblem.
    """

    rank: int = 10

    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "tensor_shift", "apply", "sample", "logdet", "inverse_diagonal", "eigenvalue_bounds"}
    )
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"J": 1}

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"DiagonalLowRank: rank={self.rank} must be at least 1; use Diagonal for rank 0")

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """``d = initial``, ``U = 0``."""
        columns = min(self.rank, math.prod(shape))
        return {
            "U": torch.zeros((*shape, columns), dtype=dtype, device=device),
            "d": torch.full(shape, initial, dtype=dtype, device=device),
        }

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows themselves, ``(K N, D)``."""
        return {"J": rows.dense().flatten(2).flatten(0, 1)}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """The best ``rank`` directions of the new matrix; their rest goes to the diagonal."""
        old = state["U"].reshape(state["d"].numel(), -1)
        u, rest = low_rank.compress(old, observation["J"], decay=decay, weight=weight, rank=old.shape[1])
        return {"U": u.view_as(state["U"]), "d": rest.view_as(state["d"]).add_(state["d"], alpha=decay)}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Woodbury's identity with one refinement."""
        self._only_linear(exponent)
        d, u = self._flat(state, shift)
        return low_rank.solve(d, u, v.reshape(-1, d.shape[0])).reshape(v.shape)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(d + shift) v + U U^T v``."""
        d, u = self._flat(state, shift)
        return low_rank.apply(d, u, v.reshape(-1, d.shape[0])).reshape(v.shape)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """One small eigendecomposition, safe for dependent columns in ``U``."""
        d, u = self._flat(state, shift)
        return low_rank.sample(d, u, noise.reshape(-1, d.shape[0])).reshape(noise.shape)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``sum log d`` plus the logarithmic determinant of a small matrix."""
        return low_rank.logdet(*self._flat(state, shift))

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Woodbury's identity."""
        return low_rank.inverse_diagonal(*self._flat(state, shift)).reshape(state["d"].shape)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """``min(d + shift)`` and ``max(d + shift) + |U|^2``: a bound on either side, not attained in general."""
        d, u = self._flat(state, shift)
        return d.min(), d.max() + torch.linalg.eigvalsh(u.T @ u)[-1].clamp_min(0.0)

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``U U^T + diag(d + shift)``."""
        d, u = self._flat(state, shift)
        return u @ u.T + d.diag()

    def _flat(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        d = (state["d"] + shift).flatten()
        return d, state["U"].reshape(d.shape[0], -1)
