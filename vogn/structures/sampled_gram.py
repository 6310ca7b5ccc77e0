"""Curvature in sample space of a random draw of the rows (HyLo's KIS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg import sample_space
from vogn.linalg.noise import generator
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.structures.gram import Gram
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class SampledGram(Structure):
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
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"J": 1}

    def __post_init__(self) -> None:
        sample_space.number_of_columns(self.rank, 1, type(self).__name__)
        self._gram()

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No columns, nothing drawn."""
        state = self._gram().init(shape, initial=initial, dtype=dtype, device=device)
        return state | {"draws": torch.zeros((), dtype=torch.int64)}

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows themselves, ``(K N, D)``."""
        return self._gram().observe(state, rows)

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """A draw among the weighted rows."""
        rows = sample_space.weighted_rows(Gram.columns(state), observation["J"], decay=decay, weight=weight)
        count = sample_space.number_of_columns(self.rank, len(rows), type(self).__name__)
        name, step = str(tuple(state["U"].shape[:-1])), int(state["draws"])
        source = generator(seed=self.seed, stream="rows", step=step, sample=0, name=name)
        drawn = sample_space.importance_draw(rows, torch.rand(count, generator=source, dtype=torch.float64))
        new = self._gram().update(state, {"J": drawn}, decay=0.0, weight=1.0, shift=shift)
        return new | {"scale": decay * state["scale"], "draws": state["draws"] + 1}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """See :meth:`Gram.solve`."""
        self._only_linear(exponent)
        return self._gram().solve(state, v, shift)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """See :meth:`Gram.apply`."""
        return self._gram().apply(state, v, shift)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """See :meth:`Gram.sample`."""
        return self._gram().sample(state, noise, shift)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """See :meth:`Gram.logdet`."""
        return self._gram().logdet(state, shift)

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """See :meth:`Gram.inverse_diagonal`."""
        return self._gram().inverse_diagonal(state, shift)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """See :meth:`Gram.eigenvalue_bounds`."""
        return self._gram().eigenvalue_bounds(state, shift)

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``U U^T + diag(scale + shift)``."""
        return self._gram().to_dense(state, shift)

    def _gram(self) -> Gram:
        return Gram(window=self.window)
