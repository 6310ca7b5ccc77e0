"""The rows themselves: curvature in sample space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vogn.linalg import low_rank
from vogn.structures.base import Shift
from vogn.structures.columns import ColumnStructure
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class Gram(ColumnStructure):
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

    def part(self, state: State, rows: int, source: torch.Generator) -> tuple[State, float]:
        """Some of the columns, scaled up; all of them if there are no more."""
        u, held = state["U"], int(state["columns"])
        if held <= rows:
            return state, 1.0
        chosen = torch.randperm(held, generator=source, device=u.device)[:rows]
        part = {"U": u[..., chosen] * (held / rows) ** 0.5, "columns": torch.tensor(rows)}
        return state | part, held / rows

    @staticmethod
    def columns(state: State) -> Tensor:
        """``U`` without the zeros behind, ``(D, n)``."""
        u = state["U"]
        return u.reshape(math.prod(u.shape[:-1]), -1)[:, : int(state["columns"])]

    def flat(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """See :meth:`ColumnStructure.flat`."""
        return (state["scale"] + shift).expand(state["U"].shape[:-1]), self.columns(state)

    def number(self, state: State, shift: Shift) -> float | None:
        """See :meth:`ColumnStructure.number`."""
        one = not isinstance(shift, Tensor) or shift.numel() == 1
        return float(state["scale"]) + self._scalar_shift(shift) if one else None
