"""Curvature in sample space of a random draw of the rows (HyLo's KIS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vogn.linalg import fewer_columns
from vogn.linalg.noise import generator
from vogn.structures.base import Shift
from vogn.structures.columns import ColumnStructure
from vogn.structures.gram import Gram
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class SampledGram(ColumnStructure):
    """``C = scale I + U U^T``; the columns of ``U`` are ``rank`` weighted rows, drawn with replacement.

    The draw takes row ``n`` with probability ``p_n ~ |J_n|^2`` and weight ``1 / (rank p_n)``, so each new curvature is
    unbiased given the old one: ``E[C'] = decay C + weight J^T J``. It is positive semi-definite whatever is drawn:
    everything that :class:`Gram` can do, this can. With ``curvature_decay > 0`` the draw is among old and new rows.

    The draw is a function of ``seed``, of the shape of the block and of the number of observations so far, which the
    state counts in ``draws``; blocks of the same shape share the uniform numbers behind it.

    Args:
        rank: rows that are drawn: a whole number of at least 1, or a share in (0, 1] of the rows at hand (rounded down,
            at least one). As many draws as rows are still a draw; :class:`Gram` keeps them all.
        window: columns at most; see :class:`Gram`.
        seed: of the draws.

    Raises:
        ValueError: if the rank or the window is out of range.

    Source: Mu, Soori, Can, Gurbuzbalaban, Dehnavi (2022), "HyLo: a hybrid low-rank natural gradient descent method",
    KIS; with replacement and the weights that the paper's code omits. Drineas, Kannan, Mahoney (2006).
    """

    rank: int | float = 0.1
    window: int = 256
    seed: int = 0

    SUPPORTS: ClassVar[frozenset[str]] = Gram.SUPPORTS

    def __post_init__(self) -> None:
        fewer_columns.number_of_columns(self.rank, 1, type(self).__name__)
        self._gram()

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No columns, nothing drawn."""
        state = self._gram().init(shape, initial=initial, dtype=dtype, device=device)
        return state | {"draws": torch.zeros((), dtype=torch.int64)}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """A draw among the weighted rows."""
        rows = fewer_columns.weighted_rows(Gram.columns(state), observation["J"], decay=decay, weight=weight)
        count = fewer_columns.number_of_columns(self.rank, len(rows), type(self).__name__)
        name, step = str(tuple(state["U"].shape[:-1])), int(state["draws"])
        source = generator(seed=self.seed, stream="rows", step=step, sample=0, name=name)
        drawn = fewer_columns.importance_draw(rows, torch.rand(count, generator=source, dtype=torch.float64))
        new = self._gram().update(state, {"J": drawn}, decay=0.0, weight=1.0, shift=shift)
        return new | {"scale": decay * state["scale"], "draws": state["draws"] + 1}

    def flat(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """See :meth:`ColumnStructure.flat`."""
        return self._gram().flat(state, shift)

    def number(self, state: State, shift: Shift) -> float | None:
        """See :meth:`ColumnStructure.number`."""
        return self._gram().number(state, shift)

    def _gram(self) -> Gram:
        return Gram(window=self.window)
