"""Curvature in sample space that is compressed in critical phases of training and drawn at random in the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vogn.linalg import fewer_columns
from vogn.linalg.noise import generator
from vogn.structures.base import Shift, Structure
from vogn.structures.compressed_gram import CompressedGram
from vogn.structures.gram import Gram
from vogn.structures.interpolative_gram import InterpolativeGram
from vogn.types import Observation, Shape, State


class _Phases(Structure):
    """A compression by the structure next in the order of bases, or a draw, as the state's ``critical`` says."""

    rank: int | float
    window: int
    seed: int

    def earlier_rows(self, state: State, decay: float, shift: Shift) -> Tensor:
        """What a draw meets of the rows before, ``(D, r)``."""
        raise NotImplementedError

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No columns, nothing drawn, a critical phase."""
        start = super().init(shape, initial=initial, dtype=dtype, device=device)  # type: ignore[safe-super]
        return start | {"critical": torch.ones((), dtype=torch.int64), "draws": torch.zeros((), dtype=torch.int64)}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """A compression or a draw."""
        kept = {key: state[key] for key in ("critical", "draws")}
        if bool(state["critical"]):
            new = super().update(  # type: ignore[safe-super]
                state, observation, decay=decay, weight=weight, shift=shift
            )
            return new | kept
        old = self.earlier_rows(state, decay, shift)
        rows = fewer_columns.weighted_rows(old, observation["J"], decay=decay, weight=weight)
        drawn = _draw(state, rows, self.rank, self.window, self.seed, type(self).__name__)
        return _as_columns(state, drawn) | {"scale": decay * state["scale"], "draws": state["draws"] + 1}

    def with_phase(self, state: State, *, critical: bool) -> State:
        """See :meth:`Structure.with_phase`."""
        return state | {"critical": torch.tensor(int(critical))}


@dataclass(frozen=True)
class SwitchedGram(_Phases, CompressedGram):
    """:class:`CompressedGram` in critical phases, a draw of the rows as in :class:`SampledGram` in the others.

    Both have one form, ``lambda I + U_S P^T (I + Res / lambda)^-1 P U_S^T``: that of a draw has ``P = I`` and
    ``Res = 0``. So a switch needs no translation: old rows, whatever chose them, enter the next update where
    ``curvature_decay > 0``. The state says in ``critical`` which one the next update is, 1 at the start;
    :meth:`with_phase` changes it (:class:`vogn.optim.steps.CriticalPhases`). It is positive definite either way.

    Args:
        rank, window: see :class:`CompressedGram`.
        seed: of the draws; see :class:`SampledGram`.

    Source: Mu, Soori, Can, Gurbuzbalaban, Dehnavi (2022), "HyLo: a hybrid low-rank natural gradient descent method",
    the hybrid method, with the projection of :class:`CompressedGram`.
    """

    seed: int = 0

    def earlier_rows(self, state: State, decay: float, shift: Shift) -> Tensor:
        """The columns of the symmetric form."""
        return Gram.columns(self._explicit(state, shift))


@dataclass(frozen=True)
class SwitchedInterpolativeGram(_Phases, InterpolativeGram):
    """HyLo's own two: :class:`InterpolativeGram` (KID) in critical phases, a draw of the rows (KIS) in the others.

    See :class:`SwitchedGram`. Because the curvature of a critical phase is not symmetric, nothing can be sampled.

    Args:
        rank, window: see :class:`InterpolativeGram`.
        seed: of the draws; see :class:`SampledGram`.

    Source: Mu, Soori, Can, Gurbuzbalaban, Dehnavi (2022), "HyLo: a hybrid low-rank natural gradient descent method",
    the hybrid method.
    """

    seed: int = 0

    def earlier_rows(self, state: State, decay: float, shift: Shift) -> Tensor:
        """The columns, merged by the interpolation."""
        old = Gram.columns(state)
        return fewer_columns.merge_columns(old, state["P"][:, : old.shape[1]].double()) if decay else old


def _draw(state: State, rows: Tensor, rank: int | float, window: int, seed: int, owner: str) -> Tensor:
    """As many rows as a compression would keep, drawn by importance; merged into ``D`` where they are more."""
    count = fewer_columns.number_of_columns(rank, min(len(rows), window), owner)
    name, step = str(tuple(state["U"].shape[:-1])), int(state["draws"])
    source = generator(seed=seed, stream="rows", step=step, sample=0, name=name)
    drawn = fewer_columns.importance_draw(rows, torch.rand(count, generator=source, dtype=torch.float64))
    none = drawn.new_empty(drawn.shape[1], 0)
    return fewer_columns.weighted_rows(none, drawn, decay=0.0, weight=1.0, most=state["U"].shape[-1])


def _as_columns(state: State, rows: Tensor) -> State:
    """The state whose curvature is ``rows^T rows``: ``P = I``, nothing left out."""
    new = state | {key: torch.zeros_like(state[key]) for key in ("U", "P", "R")}
    new["U"][..., : len(rows)] = rows.T.reshape(*state["U"].shape[:-1], len(rows))
    new["P"][: len(rows), : len(rows)] = torch.eye(len(rows)).to(rows)
    return new | {"columns": torch.tensor(len(rows))}
