"""A diagonal plus a low-rank matrix (SLANG)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vogn.linalg.compression import compress_rows
from vogn.linalg.low_rank import apply, compress
from vogn.linalg.packed_rows import LEAVES, pack, unpack
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift
from vogn.structures.columns import ColumnStructure
from vogn.structures.earlier import kept
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class DiagonalLowRank(ColumnStructure):
    """``C = diag(d) + U U^T``; the block is often a whole network (``JoinedRows``).

    An update keeps the best ``rank`` directions of ``decay U U^T + weight J^T J`` and adds the diagonal of the rest to
    ``d``, so the diagonal of ``C`` is exact at any rank and all of ``C`` is exact if ``rank`` is at least its rank.
    Rows of a layer stay pairs ``(a, g)`` where these are much shorter than the rows written out (else the rows are at
    most twice as long as the pairs; :mod:`vogn.linalg.packed_rows`): memory does not grow with examples times
    parameters. An update costs ``2 rank`` weight-gradient products per layer, ``J U`` and ``J^T c``; where a layer has
    several positions, its rows are formed twice instead, a few outputs at a time.

    The state holds ``d`` as a block vector and ``U`` as ``(*shape, columns)`` with ``columns = min(rank, D)``.

    Args:
        rank: columns of ``U``, at least 1.

    Raises:
        ValueError: if the rank is not positive.

    Source: Mishkin, Kunstner, Nielsen, Schmidt, Khan 2018 (SLANG), section 3, with an exact small eigenproblem.
    """

    rank: int = 10

    EARLIER: ClassVar[tuple[str, ...]] = ("earlier_U", "earlier_d")
    DEGREE: ClassVar[dict[str, int]] = LEAVES
    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "tensor_shift", "apply", "sample", "logdet", "inverse_diagonal", "eigenvalue_bounds"}
    )

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
        """The rows of the layers as they come, as pairs where these are smaller (:mod:`vogn.linalg.packed_rows`)."""
        return pack(rows)

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """The best ``rank`` directions of the new matrix; their rest goes to the diagonal."""
        old = state["U"].reshape(state["d"].numel(), -1)
        layers = unpack(observation)
        u, rest = compress_rows(old, layers, decay=decay, weight=weight, rank=old.shape[1])
        new = {"U": u.view_as(state["U"]), "d": rest.view_as(state["d"]).add_(state["d"], alpha=decay)}
        if "earlier_U" not in state:
            return new
        new |= kept(state, self.EARLIER)
        return new | _added(new, state["earlier_U"], state["earlier_d"], weight)

    def with_earlier(self, state: State, other: State, factor: float) -> State:
        """See :meth:`Structure.with_earlier`; what the columns cannot hold of a sum goes to the diagonal."""
        u, d = factor**0.5 * other["U"], factor * other["d"]
        return state | _added(state, u, d, 1.0) | {"earlier_U": u, "earlier_d": d}

    def earlier_product(self, state: State, v: Tensor) -> Tensor:
        """``d_E v + U_E U_E^T v``."""
        if "earlier_U" not in state:
            return torch.zeros_like(v)
        d = state["earlier_d"].flatten()
        return apply(d, state["earlier_U"].reshape(len(d), -1), v.reshape(-1, len(d))).reshape(v.shape)

    def flat(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """See :meth:`ColumnStructure.flat`."""
        return state["d"] + shift, state["U"].reshape(state["d"].numel(), -1)


def _added(state: State, u: Tensor, d: Tensor, weight: float) -> State:
    """``C + weight (diag(d) + U U^T)`` in the columns that the state has; its diagonal is exact."""
    old = state["U"].reshape(state["d"].numel(), -1)
    new, rest = compress(old, u.reshape(len(old), -1).T, decay=1.0, weight=weight, rank=old.shape[1])
    return {"U": new.view_as(state["U"]), "d": rest.view_as(state["d"]) + state["d"] + weight * d}
