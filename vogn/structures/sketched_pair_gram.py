"""Curvature in sample space of pairs whose inner products run over a random part of both sides (SENG)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg.cholesky import cholesky, cholesky_solve
from vogn.linalg.noise import generator
from vogn.linalg.rows import AnyRows, JoinedRows, Rows
from vogn.structures.base import Shift
from vogn.structures.pair_gram import is_paired, matvec, no_pairs, observed_pairs, pairs_of, rmatvec, with_rows
from vogn.structures.sketched_gram import SketchedGram
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class SketchedPairGram(SketchedGram):
    """``C = scale I + J~^T J~ Pi`` with the pairs of :class:`PairGram` and a ``Pi`` that picks inputs and outputs.

    ``Pi = (d_in / c_in) (d_out / c_out) P_out (x) P_in`` with ``c_in = min(c, d_in)`` random inputs, ``c_out = min(c,
    d_out)`` random outputs and ``c = sqrt(coordinates)``, so ``E[Pi] = I`` and ``E[J~ Pi J~^T] = J~ J~^T``. Only these
    coordinates of the pairs meet in the inner products; the way back, ``J~^T c``, is exact. Where both sides are whole,
    nothing is sketched.

    Blocks with at most ``above`` parameters, or for which pairs would be the larger form, are :class:`SketchedGram`.

    The state of a block of pairs: that of :class:`PairGram`, the chosen ``inputs (c_in,)`` and ``outputs (c_out,)``,
    and ``draws``; of the others that of :class:`SketchedGram`.

    Args:
        coordinates, window, seed: see :class:`SketchedGram`.
        positions, above: see :class:`PairGram`.

    Raises:
        ValueError: if an option is out of range.

    The authors' code goes back by a product of sums, ``(sum_n s_n sqrt|c_n| G_n)^T (sum_n sqrt|c_n| A_n)``, in place of
    ``sum_n c_n G_n^T A_n``. It depends on the signs of singular vectors, which nothing determines, and is no
    approximation of the sum; it is not provided.

    Source: Yang, Xu, Wen, Chen, Xu (2020), "Sketchy Empirical Natural Gradient Methods for Deep Learning", section 3.
    """

    positions: int = 16
    above: int = 0

    DEGREE: ClassVar[dict[str, int]] = {"a": 0, "g": 1, "length": 0, "J": 1}
    GROWS: ClassVar[dict[str, int]] = {"a": 0, "g": 0, "length": 0}
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    SUPPORTS: ClassVar[frozenset[str]] = SketchedGram.SUPPORTS - {"tensor_shift"}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions < 1 or self.above < 0:
            raise ValueError(
                f"{type(self).__name__}: positions={self.positions} must be at least 1 and above={self.above} at least "
                "0"
            )

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No rows, nothing drawn."""
        if not is_paired(shape, self.positions, self.above):
            return super().init(shape, initial=initial, dtype=dtype, device=device)
        side = max(1, math.isqrt(self.coordinates))
        return no_pairs(shape, initial, dtype, device) | {
            "inputs": torch.arange(min(side, shape[1]), dtype=torch.int64, device=device),
            "outputs": torch.arange(min(side, shape[0]), dtype=torch.int64, device=device),
            "draws": torch.zeros((), dtype=torch.int64),
        }

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """Pairs, or the rows themselves."""
        if isinstance(rows, JoinedRows) or not is_paired(rows.shape, self.positions, self.above):
            return super().observe(state, rows)
        return observed_pairs(rows, self.positions)

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """Weighted rows one after the other, and new coordinates."""
        if "U" in state:
            return super().update(state, observation, decay=decay, weight=weight, shift=shift)
        shape, new = state["template"].shape[1:], dict(state)
        name, step = str(tuple(shape)), int(state["draws"])
        source = generator(seed=self.seed, stream="sketch", step=step, sample=0, name=name)
        for key, size in (("inputs", shape[1]), ("outputs", shape[0])):
            if len(state[key]) < size:
                new[key] = torch.randperm(size, generator=source)[: len(state[key])].to(state[key].device)
        return new | with_rows(state, observation, self.window, decay, weight) | {"draws": state["draws"] + 1}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Woodbury's identity with one refinement, in double precision."""
        self._only_linear(exponent)
        if "U" in state:
            return super().solve(state, v, self._scalar_shift(shift))
        number = float(state["scale"]) + self._scalar_shift(shift)
        if not number > 0.0:
            raise NotPositiveDefiniteError(
                f"a curvature of low rank has no inverse with a shift of {number:.3g}; set weight_decay, damping or "
                "initial_curvature above 0"
            )
        if not len(state["length"]):
            return v / number
        wide = pairs_of(state | {key: state[key].double() for key in ("a", "g")})
        narrow, ratio = _narrow(state, wide)
        system = ratio * narrow.gram()
        system.diagonal().add_(number)
        factor = cholesky(system, remedy="raise damping", rescue=True)
        flat = v.reshape(-1, *state["template"].shape[1:]).double()

        def invert(r: Tensor) -> Tensor:
            return (r - rmatvec(wide, cholesky_solve(factor, ratio * matvec(narrow, _part(state, r))))) / number

        x = invert(flat)
        x = x + invert(flat - _product(state, wide, x, number))
        return x.to(v.dtype).reshape(v.shape)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(scale + shift) v + J~^T J~ Pi v``."""
        if "U" in state:
            return super().apply(state, v, self._scalar_shift(shift))
        flat = v.reshape(-1, *state["template"].shape[1:])
        number = float(state["scale"]) + self._scalar_shift(shift)
        return _product(state, pairs_of(state), flat, number).reshape(v.shape)

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``(scale + shift) I + J~^T J~ Pi``; not symmetric where the block is sketched."""
        if "U" in state:
            return super().to_dense(state, shift)
        shape = state["template"].shape[1:]
        eye = torch.eye(math.prod(shape), dtype=state["a"].dtype, device=state["a"].device)
        return self.apply(state, eye.reshape(-1, *shape), shift).flatten(1).T


def _narrow(state: State, rows: Rows) -> tuple[Rows, float]:
    """The pairs at the chosen coordinates, and what makes up for the others."""
    inputs, outputs = state["inputs"], state["outputs"]
    d_out, d_in = rows.shape
    return Rows(rows.a[..., inputs], rows.g[..., outputs]), (d_in / len(inputs)) * (d_out / len(outputs))


def _part(state: State, v: Tensor) -> Tensor:
    """Block vectors at the chosen coordinates."""
    return v[:, state["outputs"]][:, :, state["inputs"]]


def _product(state: State, rows: Rows, v: Tensor, number: float) -> Tensor:
    """``number v + J~^T J~ Pi v``."""
    narrow, ratio = _narrow(state, rows)
    return number * v + ratio * rmatvec(rows, matvec(narrow, _part(state, v)))
