"""Curvature in sample space, compressed to a few representative rows (HyLo, the variant that is a Gaussian's)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vogn.linalg import fewer_columns
from vogn.structures.base import Shift
from vogn.structures.columns import ColumnStructure
from vogn.structures.gram import Gram
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class CompressedGram(ColumnStructure):
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

    def __post_init__(self) -> None:
        fewer_columns.number_of_columns(self.rank, 1, type(self).__name__)
        if self.window < 1:
            raise ValueError(f"{type(self).__name__}: window={self.window} must be at least 1")

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No columns."""
        count = fewer_columns.number_of_columns(self.rank, self.window, type(self).__name__)
        state = Gram(window=count).init(shape, initial=initial, dtype=dtype, device=device)
        zeros = state["U"].new_zeros
        return state | {"P": zeros(self.window, state["U"].shape[-1]), "R": zeros(self.window)}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """The representatives among the weighted rows."""
        old = Gram.columns(self._explicit(state, shift))
        rows = fewer_columns.weighted_rows(old, observation["J"], decay=decay, weight=weight, most=self.window)
        wide = rows.double()
        count = min(fewer_columns.number_of_columns(self.rank, len(rows), type(self).__name__), state["U"].shape[-1])
        index, p, r = fewer_columns.representatives(wide @ wide.T, count)
        new = {key: torch.zeros_like(state[key]) for key in ("U", "P", "R")}
        new["U"][..., : len(index)] = rows[index].T.reshape(*state["U"].shape[:-1], len(index))
        new["P"][: len(rows), : len(index)] = p
        new["R"][: len(rows)] = r
        return new | {"columns": torch.tensor(len(index)), "scale": decay * state["scale"]}

    def flat(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """See :meth:`ColumnStructure.flat`."""
        return Gram().flat(self._explicit(state, shift), shift)

    def number(self, state: State, shift: Shift) -> float | None:
        """See :meth:`ColumnStructure.number`."""
        return Gram().number(state, shift)

    def _explicit(self, state: State, shift: Shift) -> State:
        """The state of the :class:`Gram` that is the same matrix at this shift: ``U = U_S T^T`` with
        ``T^T T = P^T (I + Res / lambda)^-1 P``."""
        damping = state["scale"].double() + self._scalar_shift(shift)
        missed = state["R"].double().square()
        share = torch.where(missed > 0, damping / (damping + missed), 1.0).clamp_min(0.0)
        u = Gram.columns(state)
        columns = fewer_columns.merge_columns(u, share.sqrt().unsqueeze(1) * state["P"][:, : u.shape[1]].double())
        return {**state, "U": columns.reshape(*state["U"].shape[:-1], u.shape[1])}
