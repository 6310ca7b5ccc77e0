"""The rows themselves: curvature in sample space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg import low_rank, woodbury
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class Gram(Structure):
    """``C = scale I + U U^T``; the columns of ``U`` are the weighted rows of the last batches.

    Nothing is approximated while at most ``window`` rows are held: inverses go through the ``n x n`` matrix of inner
    products of the ``n`` columns (Woodbury), never through a ``D x D`` one. With ``curvature_decay = 0`` the curvature
    is that of the present batch alone; else old rows keep geometrically decaying weights. More than ``window`` columns
    are merged into the best ones of that number (rank-revealing: still exact if the rank is no larger; what is
    dropped makes ``C`` smaller, never larger).

    The state holds ``U`` as ``(*shape, min(window, D))`` with its columns in front and zeros behind, their number
    ``columns ()`` and ``scale ()``, which is ``initial`` times the decays so far.

    Args:
        window: rows that are held, at least 1; a batch of ``N`` examples with ``K`` columns each has ``K N`` rows.

    Raises:
        ValueError: if the window is not positive.

    Source: Ren and Goldfarb (2019), "Efficient Subsampled Gauss-Newton and Natural Gradient Methods for Training Neural
    Networks", section 3, for the inverse.
    """

    window: int = 256

    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "tensor_shift", "apply", "sample", "logdet", "inverse_diagonal", "eigenvalue_bounds"}
    )
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"J": 1}

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"Gram: window={self.window} must be at least 1")

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No columns."""
        return {
            "U": torch.zeros((*shape, min(self.window, math.prod(shape))), dtype=dtype, device=device),
            "columns": torch.zeros((), dtype=torch.int64),
            "scale": torch.full((), initial, dtype=dtype, device=device),
        }

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows themselves, ``(K N, D)``."""
        return {"J": rows.dense().flatten(2).flatten(0, 1)}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """Weighted rows side by side; merged beyond the window, or where they are more than ``D``."""
        rows, flat = observation["J"], self.columns(state)
        new = torch.zeros_like(state["U"])
        limit = new.shape[-1]
        if not decay:
            flat = flat[:, :0]
        if flat.shape[1] + rows.shape[0] > limit:
            u = low_rank.merge(flat, rows, decay=decay, weight=weight, rank=limit)
        else:
            u = torch.cat([decay**0.5 * flat, weight**0.5 * rows.T], 1)
        new.view(-1, limit)[:, : u.shape[1]] = u
        return {"U": new, "columns": torch.tensor(u.shape[1]), "scale": decay * state["scale"]}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Woodbury's identity with one refinement."""
        self._only_linear(exponent)
        u = self.columns(state)
        flat = v.reshape(-1, len(u))
        if _is_number(shift):
            return woodbury.solve(self._number(state, shift), u, flat).reshape(v.shape)
        return low_rank.solve(self._diagonal(state, shift), u, flat).reshape(v.shape)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(scale + shift) v + U U^T v``."""
        d, u = self.flat(state, shift)
        return low_rank.apply(d, u, v.reshape(-1, len(u))).reshape(v.shape)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """One eigendecomposition of the ``n x n`` matrix, safe for duplicated rows."""
        u = self.columns(state)
        flat = noise.reshape(-1, len(u))
        if _is_number(shift):
            return woodbury.sample(self._number(state, shift), u, flat).reshape(noise.shape)
        return low_rank.sample(self._diagonal(state, shift), u, flat).reshape(noise.shape)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``D log shift`` plus the logarithmic determinant of the ``n x n`` matrix."""
        if _is_number(shift):
            return woodbury.logdet(self._number(state, shift), self.columns(state))
        return low_rank.logdet(*self.flat(state, shift))

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Woodbury's identity."""
        return low_rank.inverse_diagonal(*self.flat(state, shift)).reshape(state["U"].shape[:-1])

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """Of the smaller one of ``U^T U`` and ``U U^T``; with a tensor shift a bound on either side, not attained."""
        d, u = self.flat(state, shift)
        if not u.shape[1]:
            return d.min(), d.max()
        spectrum = torch.linalg.eigvalsh(u.T @ u if u.shape[1] < len(u) else u @ u.T).clamp_min(0.0)
        return (d.min() + spectrum[0] if u.shape[1] >= len(u) else d.min()), d.max() + spectrum[-1]

    def part(self, state: State, rows: int, source: torch.Generator) -> tuple[State, float]:
        """Some of the columns, scaled up; all of them if there are no more."""
        u, held = state["U"], int(state["columns"])
        if held <= rows:
            return state, 1.0
        chosen = torch.randperm(held, generator=source, device=u.device)[:rows]
        part = {"U": u[..., chosen] * (held / rows) ** 0.5, "columns": torch.tensor(rows)}
        return state | part, held / rows

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``U U^T + diag(scale + shift)``."""
        d, u = self.flat(state, shift)
        return u @ u.T + d.diag()

    @staticmethod
    def columns(state: State) -> Tensor:
        """``U`` without the zeros behind, ``(D, n)``."""
        u = state["U"]
        return u.reshape(math.prod(u.shape[:-1]), -1)[:, : int(state["columns"])]

    def flat(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """``scale + shift`` as ``(D,)`` and ``U`` without the zeros behind."""
        return self._diagonal(state, shift), self.columns(state)

    @staticmethod
    def _diagonal(state: State, shift: Shift) -> Tensor:
        return (state["scale"] + shift).expand(state["U"].shape[:-1]).flatten()

    def _number(self, state: State, shift: Shift) -> float:
        return float(state["scale"]) + self._scalar_shift(shift)


def _is_number(shift: Shift) -> bool:
    return not isinstance(shift, Tensor) or shift.numel() == 1
