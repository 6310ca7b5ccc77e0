"""Curvature in sample space whose rows stay pairs of inputs and output gradients (SENG's implicit form)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg import woodbury
from vogn.linalg.cholesky import cholesky, cholesky_logdet, cholesky_solve
from vogn.linalg.eigh import eigh
from vogn.linalg.rows import AnyRows, GradientRow, IndexedRows, JoinedRows, Rows
from vogn.linalg.truncated_pairs import truncated_pairs
from vogn.structures.base import Shift
from vogn.structures.columns import ColumnStructure
from vogn.structures.gram import Gram
from vogn.types import Observation, Shape, State

_REMEDY = "set weight_decay, damping or initial_curvature above 0"


def is_paired(shape: Shape, positions: int, above: int) -> bool:
    """Whether blocks of this shape hold pairs: large enough, and pairs are the smaller form."""
    return len(shape) == 2 and math.prod(shape) > above and positions * sum(shape) < math.prod(shape)


@dataclass(frozen=True)
class PairGram(ColumnStructure):
    """``C = scale I + J~^T J~`` with rows ``J~_n = sum_p g~_np a~_np^T`` that are never written out.

    The rows of a layer with ``T`` positions (a convolution, a sequence) are sums of ``T`` pairs; each is cut to the
    ``positions`` pairs that the largest singular values of its output gradients leave, which is exact with
    ``positions >= T`` (:func:`vogn.linalg.truncated_pairs.truncated_pairs`). A row then holds at most ``positions (d_in
    + d_out)`` numbers instead of ``d_in d_out``, its inner products with others go through the pairs, and so do
    inverses, logarithmic determinants and draws. ``C`` is symmetric whatever is cut off, so it has a Gaussian.

    Blocks with at most ``above`` parameters, or for which pairs would be the larger form, are :class:`Gram`.

    With ``curvature_decay > 0`` old rows keep geometrically decaying weights. Pairs cannot be merged: beyond ``window``
    rows the oldest are dropped; a batch with more rows than that is held whole.

    The state of a block of pairs: ``a (P, d_in)`` and ``g (P, d_out)`` of all pairs of all rows, ``length (n,)``, the
    pairs of each row, ``scale ()`` and an empty ``template (0, *shape)``; of the others that of :class:`Gram`.

    Args:
        positions: pairs per row, at least 1.
        window: rows that are held; see above and :class:`Gram`.
        above: blocks with more parameters hold pairs.

    Raises:
        ValueError: if an option is out of range.

    The diagonal of the inverse writes the rows out.

    Source: Yang, Xu, Wen, Chen, Xu (2020), "Sketchy Empirical Natural Gradient Methods for Deep Learning", section 3.
    """

    positions: int = 16
    window: int = 256
    above: int = 0

    SUPPORTS: ClassVar[frozenset[str]] = Gram.SUPPORTS - {"tensor_shift"}
    DEGREE: ClassVar[dict[str, int]] = {"a": 0, "g": 1, "length": 0, "J": 1}
    GROWS: ClassVar[dict[str, int]] = {"a": 0, "g": 0, "length": 0}

    def __post_init__(self) -> None:
        if self.positions < 1 or self.above < 0:
            raise ValueError(
                f"{type(self).__name__}: positions={self.positions} must be at least 1 and above={self.above} at least "
                "0"
            )
        self._gram()

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No rows."""
        if not is_paired(shape, self.positions, self.above):
            return self._gram().init(shape, initial=initial, dtype=dtype, device=device)
        return no_pairs(shape, initial, dtype, device)

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """Pairs, or the rows themselves."""
        if not is_paired(rows.shape, self.positions, self.above) or isinstance(rows, JoinedRows):
            return self._gram().observe(state, rows)
        return observed_pairs(rows, self.positions)

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """Weighted rows one after the other; the oldest beyond the window are dropped."""
        if "U" in state:
            return self._gram().update(state, observation, decay=decay, weight=weight, shift=shift)
        return dict(state) | with_rows(state, observation, self.window, decay, weight)

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Woodbury's identity with one refinement."""
        self._only_linear(exponent)
        number, gram = self._scale(state, shift), self._inner(state, shift, 1)
        if gram is None:
            if "U" in state:
                return super().solve(state, v, shift)
            wide = state | {key: state[key].double() for key in ("a", "g")}  # rows are rounded where they are formed
            return super().solve(wide, v.double(), shift).to(v.dtype)
        rows = pairs_of(state)
        gram.diagonal().add_(number)
        factor = cholesky(gram, remedy=_REMEDY, rescue=True)
        flat = v.reshape(-1, *state["template"].shape[1:])

        def invert(r: Tensor) -> Tensor:
            c = cholesky_solve(factor, matvec(rows, r).double()).to(r.dtype)
            return (r - rmatvec(rows, c)) / number

        x = invert(flat)
        x = x + invert(flat - number * x - rmatvec(rows, matvec(rows, x)))
        return x.reshape(v.shape)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(scale + shift) v + J~^T J~ v``."""
        number = self._scale(state, shift)
        if "U" in state:
            return super().apply(state, v, shift)
        flat, rows = v.reshape(-1, *state["template"].shape[1:]), pairs_of(state)
        return (number * flat + rmatvec(rows, matvec(rows, flat))).reshape(v.shape)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """One eigendecomposition of the inner products; see :func:`vogn.linalg.low_rank.sample`."""
        number, gram = self._scale(state, shift), self._inner(state, shift, 2)
        if gram is None:
            return super().sample(state, noise, shift)
        values, rotation = eigh(gram)
        q = (1.0 + values / number).sqrt()
        flat, rows = noise.reshape(-1, *state["template"].shape[1:]), pairs_of(state)
        inner = (matvec(rows, flat).double() @ rotation / (number * q * (1.0 + q))) @ rotation.T
        return ((flat - rmatvec(rows, inner.to(noise.dtype))) * number**-0.5).reshape(noise.shape)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``D log (scale + shift)`` plus the logarithmic determinant of an ``n x n`` matrix."""
        number, gram = self._scale(state, shift), self._inner(state, shift, 1)
        if gram is None:
            return super().logdet(state, shift)
        gram.div_(number).diagonal().add_(1.0)
        inner = cholesky_logdet(cholesky(gram, remedy=_REMEDY, rescue=True))
        size = math.prod(state["template"].shape[1:])
        return (inner + size * torch.tensor(number, dtype=torch.float64).log()).to(state["a"].dtype)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues."""
        number = self._scale(state, shift)
        if "U" in state or len(state["length"]) >= math.prod(state["template"].shape[1:]):
            return super().eigenvalue_bounds(state, shift)
        base = state["scale"].new_full((), number)
        return base, base + (eigh(pairs_of(state).gram().double())[0][-1].to(base) if len(state["length"]) else 0.0)

    def flat(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """See :meth:`ColumnStructure.flat`; writes the rows out."""
        if "U" in state:
            return self._gram().flat(state, self._scalar_shift(shift))
        size = math.prod(state["template"].shape[1:])
        rows = state["a"].new_zeros(0, size)
        if len(state["length"]):
            rows = pairs_of(state).dense().reshape(-1, size)
        return (state["scale"] + self._scalar_shift(shift)).expand(state["template"].shape[1:]), rows.T

    def number(self, state: State, shift: Shift) -> float | None:
        """See :meth:`ColumnStructure.number`."""
        return self._scale(state, shift)

    def _scale(self, state: State, shift: Shift) -> float:
        """``scale + shift``."""
        return float(state["scale"]) + self._scalar_shift(shift)

    def _inner(self, state: State, shift: Shift, power: int) -> Tensor | None:
        """``J~ J~^T`` in double precision, in new memory; ``None`` for rows written out, or that have to be.

        Raises:
            NotPositiveDefiniteError: if the shift is not positive.
        """
        if "U" in state or not len(state["length"]):
            return None
        number = self._scale(state, shift)
        if not number > 0.0:
            raise NotPositiveDefiniteError(
                f"a curvature of low rank has no inverse with a shift of {number:.3g}; {_REMEDY}"
            )
        gram = pairs_of(state).gram().double()
        within = float(gram.diagonal().sum()) <= woodbury.limit(state["a"].dtype) ** power * number
        return gram.clone() if within else None

    def _gram(self) -> Gram:
        return Gram(window=self.window)


def no_pairs(shape: Shape, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
    """A state without rows."""
    sizes = {"a": (0, shape[1]), "g": (0, shape[0]), "length": (0,), "template": (0, *shape)}
    state = {key: torch.zeros(size, dtype=dtype, device=device) for key, size in sizes.items()}
    return state | {"scale": torch.full((), initial, dtype=dtype, device=device)}


def observed_pairs(rows: Rows | IndexedRows | GradientRow, positions: int) -> Observation:
    """All pairs one after the other, and how many belong to each row."""
    a, g = truncated_pairs(rows, positions)
    length = a.new_full((len(a),), float(a.shape[1]))
    return {"a": a.flatten(0, 1), "g": g.flatten(0, 1), "length": length}


def with_rows(state: State, observation: Observation, window: int, decay: float, weight: float) -> State:
    """Old and new pairs, and the new scale."""
    new = {"a": observation["a"], "g": weight**0.5 * observation["g"], "length": observation["length"]}
    if decay:
        gone = max(0, len(state["length"]) - max(0, window - len(new["length"])))
        pairs = int(state["length"][:gone].sum())
        old = {"a": state["a"][pairs:], "g": decay**0.5 * state["g"][pairs:], "length": state["length"][gone:]}
        new = {key: torch.cat([old[key], tensor]) for key, tensor in new.items()}
    return new | {"scale": decay * state["scale"]}


def pairs_of(state: State) -> Rows:
    """The rows, ``(n, q, ...)``, filled up with zeros where they differ in length."""
    sizes = state["length"].round().long().tolist()
    if not sizes or min(sizes) == max(sizes):
        count = sizes[0] if sizes else 1
        a, g = (state[key].reshape(len(sizes), count, state[key].shape[1]) for key in ("a", "g"))
    else:
        a, g = (pad_sequence(list(state[key].split(sizes)), batch_first=True) for key in ("a", "g"))
    return Rows(a, g.unsqueeze(0))


def matvec(rows: Rows, v: Tensor) -> Tensor:
    """``J~ v`` for block vectors ``(batch, d_out, d_in)``; returns ``(batch, n)``."""
    a, g = rows.a, rows.g.squeeze(0)
    products = ((v @ a.flatten(0, 1).T) * g.flatten(0, 1).T).sum(-2)
    return products.unflatten(-1, (len(a), a.shape[1])).sum(-1)


def rmatvec(rows: Rows, c: Tensor) -> Tensor:
    """``J~^T c`` for ``c (batch, n)``; returns block vectors ``(batch, d_out, d_in)``."""
    weighted = (c[:, :, None, None] * rows.g).flatten(1, 2)
    return weighted.mT @ rows.a.flatten(0, 1)
