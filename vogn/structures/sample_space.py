"""The rows of the present batch, as pairs where that is smaller: curvature and coefficients in sample space."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vogn.linalg import low_rank
from vogn.linalg.cholesky import cholesky, cholesky_solve
from vogn.linalg.rows import AnyRows, IndexedRows, Rows
from vogn.structures.base import Shift
from vogn.structures.columns import ColumnStructure
from vogn.types import Observation, Shape, State

UNKNOWN = -1.0
"""Place of a row whose example is not known."""


@dataclass(frozen=True)
class SampleSpace(ColumnStructure):
    """``C = scale I + J^T J`` with the rows ``J`` kept one by one, each with its place in the data set.

    Rows of layers without leading dimensions are kept as pairs ``(a, g)`` where ``T (d_in + d_out)`` numbers are fewer
    than ``d_in d_out``, and written out else. Inner products go through pairs (:meth:`Rows.gram`), so that
    :meth:`coefficients` and :meth:`combine` form no per-example gradient of a linear layer. The operators of a
    posterior write all rows out and use Woodbury's identity.

    An update with ``decay = 0`` holds the present batch alone, however large. With ``decay > 0`` old rows get weights
    that decay geometrically; more than ``D`` old rows are merged into ``D``, which is exact, and lose their places.

    The state holds ``a (P, d_in)`` and ``g (P, d_out)`` of all positions of all pairs, ``J (n', D)``, and for all ``n``
    rows in the order in which they came ``length (n,)``, the number of positions of a pair, 0 for a row written out,
    and ``place (n,)``. Places are kept in the floating type of the block: single precision tells ``2^24`` examples
    apart.

    Source: Ou, Zhu, Huang, Liu (2024), "Inverse-Free Fast Natural Gradient Descent Method for Deep Learning", for the
    coefficients.
    """

    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {
            "shift",
            "tensor_shift",
            "apply",
            "sample",
            "logdet",
            "inverse_diagonal",
            "eigenvalue_bounds",
            "coefficients",
        }
    )
    DEGREE: ClassVar[dict[str, int]] = {"a": 0, "g": 1, "J": 1, "length": 0, "place": 0}
    GROWS: ClassVar[dict[str, int]] = {"a": 0, "g": 0, "J": 0, "length": 0, "place": 0}

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No rows."""
        sizes = {"a": (0, shape[-1]), "g": (0, shape[-2]), "J": (0, math.prod(shape)), "length": (0,), "place": (0,)}
        state = {key: torch.zeros(size, dtype=dtype, device=device) for key, size in sizes.items()}
        scale = torch.full((), initial, dtype=dtype, device=device)
        return state | {"scale": scale, "template": torch.empty((0, *shape), dtype=dtype, device=device)}

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows one by one, ``k`` slow and ``n`` fast."""
        leaves, length = self._leaves(rows)
        some = next(iter(leaves.values()))  # the state may be one of shapes alone, on no device
        unknown = some.new_full((rows.count,), UNKNOWN, dtype=state["scale"].dtype)
        places = unknown if rows.places is None else _exact(rows.places, unknown)
        place = places.repeat(rows.columns)
        return leaves | {"place": place, "length": torch.full_like(place, float(length))}

    @staticmethod
    def _leaves(rows: AnyRows) -> tuple[Observation, int]:
        """Inputs and output gradients, or explicit rows where these are smaller, and positions per pair (else 0)."""
        if isinstance(rows, (Rows, IndexedRows)) and len(rows.shape) == 2:
            positions = rows.g.shape[-2]
            if positions * sum(rows.shape) < math.prod(rows.shape):
                a = rows.a.flatten(0, 1)
                return {"a": a.repeat(rows.columns, 1) if rows.columns > 1 else a, "g": rows.g.flatten(0, 2)}, positions
        return {"J": rows.dense().flatten(2).flatten(0, 1)}, 0

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """The new rows; before them the old ones, if they count at all."""
        old = {key: state[key] for key in self.DEGREE}
        if not decay:
            old = {key: tensor[:0] for key, tensor in old.items()}
        elif len(old["length"]) > state["J"].shape[1]:
            old = self._merged(state)
        new = dict(state) | {"scale": decay * state["scale"]}
        for key, degree in self.DEGREE.items():
            leaf = observation.get(key, old[key][:0])
            new[key] = torch.cat([old[key] * decay ** (0.5 * degree), leaf * weight ** (0.5 * degree)])
        return new

    def _merged(self, state: State) -> State:
        """``D`` rows with the same ``J^T J``."""
        rows = self._columns(state).T
        size = len(rows)
        kept = {key: state[key][:0] for key in ("a", "g")}
        return kept | {"J": rows, "length": rows.new_zeros(size), "place": rows.new_full((size,), UNKNOWN)}

    # ------------------------------------------------------------------ in sample space

    def coefficients(self, state: State, shift: float, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """``c = (shift I + J J^T)^-1 (shift 1 - J prior)``, in double precision; pairs before rows written out.

        What ``initial`` has left in ``scale`` is counted as a part of the shift.
        """
        shift = shift + float(state["scale"])
        system = self._gram(state).double()
        system.diagonal().add_(shift)
        right = torch.full((1, len(system)), shift, dtype=system.dtype, device=system.device)
        if prior is not None:
            right -= self._matvec(state, prior).double()
        c = cholesky_solve(cholesky(system, remedy="raise damping", rescue=True), right).squeeze(0)
        pairs = _lengths(state) > 0
        return c.to(state["g"].dtype), torch.cat([state["place"][pairs], state["place"][~pairs]])

    def combine(self, state: State, c: Tensor) -> Tensor:
        """One weight-gradient product per kind of row; pairs before rows written out."""
        positions = _lengths(state)
        positions = positions[positions > 0]
        first, rest = c.split([len(positions), len(c) - len(positions)])
        total = (rest @ state["J"]).view(state["template"].shape[1:])
        if not len(positions):
            return total
        weighted = state["g"] * first.repeat_interleave(positions).unsqueeze(1)
        product = weighted.T @ state["a"]
        return product + total if len(rest) else product

    def _pairs(self, state: State) -> Rows | None:
        """The pairs as rows, padded with zeros where they differ in length."""
        sizes = [size for size in _lengths(state).tolist() if size]
        if not sizes:
            return None
        if min(sizes) == max(sizes):
            a, g = (state[key].unflatten(0, (len(sizes), sizes[0])) for key in ("a", "g"))
        else:
            a, g = (pad_sequence(list(state[key].split(sizes)), batch_first=True) for key in ("a", "g"))
        return Rows(a, g.unsqueeze(0))

    def _gram(self, state: State) -> Tensor:
        """``J J^T``, pairs before rows written out."""
        pairs, explicit = self._pairs(state), state["J"]
        if pairs is None:
            return explicit @ explicit.T
        gram = pairs.gram()
        if not len(explicit):
            return gram
        cross = torch.cat([pairs.matvec(row.view(pairs.shape)) for row in explicit])
        return torch.cat([torch.cat([gram, cross.T], 1), torch.cat([cross, explicit @ explicit.T], 1)])

    def _matvec(self, state: State, v: Tensor) -> Tensor:
        """``J v``, pairs before rows written out."""
        pairs = self._pairs(state)
        explicit = state["J"] @ v.flatten()
        return explicit if pairs is None else torch.cat([pairs.matvec(v).flatten(), explicit])

    # ------------------------------------------------------------------ as a matrix

    def flat(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """See :meth:`ColumnStructure.flat`."""
        return (state["scale"] + shift).expand(state["template"].shape[1:]), self._columns(state)

    def _columns(self, state: State) -> Tensor:
        """``J^T (D, n)``, written out; ``D`` columns with the same ``J^T J`` where ``n > D``."""
        pairs = self._pairs(state)
        rows = state["J"] if pairs is None else torch.cat([pairs.dense().flatten(2).squeeze(0), state["J"]])
        count, size = rows.shape
        if count <= size:
            return rows.T
        return low_rank.compress(rows[:0].T, rows, decay=0.0, weight=1.0, rank=size)[0]


def _lengths(state: State) -> Tensor:
    """Positions of every row, 0 for one that is written out."""
    return state["length"].round().long()


def _exact(places: Tensor, like: Tensor) -> Tensor:
    """Places as floating numbers.

    Raises:
        ValueError: if the type cannot tell them apart.
    """
    limit = 2.0 / torch.finfo(like.dtype).eps
    if places.numel() and int(places.max()) >= limit:
        raise ValueError(
            f"place {int(places.max())} in the data set: {like.dtype} tells {int(limit)} examples apart; use "
            "share='mean', or double precision"
        )
    return places.to(like)
