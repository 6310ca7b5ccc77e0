"""A window of the last mini-batch gradients with a matrix of its own for every unit (TONGA)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg import unit_woodbury
from vogn.linalg.eigh import eigh
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class UnitGradientWindow(Structure):
    """``C = blockdiag_k (c I + sum_j w_j g_jk g_jk^T) / mass``: :class:`GradientWindow` for every unit ``k``.

    A unit (neuron, channel) is one output of a layer: its incoming weights and its bias, one row of the block. The law
    is the ``"average"`` of :class:`GradientWindow`, so ``mass C`` is the decayed sum that TONGA writes; all units share
    weights and mass. A block that is no layer's, ``(D, 1)``, has units of one parameter.

    A unit's inverse goes through the inner products of its own rows, which are kept, all units at once: a new row
    costs ``O(D window)``, a solve ``O(D window + units window^3)``, or through dense matrices where a unit has fewer
    parameters than the window has rows.

    The state, with ``units = prod(lead) d_out``: ``rows (window, *shape)``, those of each unit divided by ``amplitude
    (window, units)``, a power of 2 near their largest element; ``gram (2, units, window, window)``, inner products in
    double precision as a sum of two words; ``weight (window,)``, ``c``, ``rest``, ``mass`` and ``next`` as in
    :class:`GradientWindow`.

    Args:
        window: observations in the window, >= 1. An observation is one mini-batch gradient; of several rows, each unit
            takes their best direction.
        keep: where the window is full, replace each unit's rows by this many principal directions of the unit and go on
            behind them; ``None`` drops the oldest observation. From 1 to ``window - 1``.

    Raises:
        ValueError: if an option is out of range.

    Source: Le Roux, Manzagol, Bengio (2008), "Topmoumoute Online Natural Gradient Algorithm", sections 3 and 4.
    """

    window: int = 32
    keep: int | None = None

    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "apply", "sample", "logdet", "inverse_diagonal", "eigenvalue_bounds"}
    )
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"J": 1}

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ValueError(f"UnitGradientWindow: window={self.window} must be at least 1")
        if self.keep is not None and not 1 <= self.keep <= self.window - 1:
            raise ValueError(
                f"UnitGradientWindow: keep={self.keep} must lie between 1 and window - 1 = {self.window - 1}; raise "
                "window"
            )

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """An empty window, ``c = initial``."""
        units, count = math.prod(shape[:-1]), self.window

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return {
            "rows": zeros(count, *shape),
            "amplitude": zeros(count, units),
            "gram": zeros(2, units, count, count),
            "weight": zeros(count),
            "c": torch.full((), initial, dtype=dtype, device=device),
            "rest": torch.full((), float(initial > 0.0), dtype=dtype, device=device),
            "mass": torch.ones((), dtype=dtype, device=device),
            "next": zeros(),
        }

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows themselves, ``(K N, D)``."""
        return {"J": rows.dense().flatten(2).flatten(0, 1)}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """The new observation into the window; ``weight`` is of no consequence, for the average has weights 1."""
        fresh = self._directions(state, observation["J"])
        new, place = dict(state), round(float(state["next"]))
        if place >= self.window:
            new, place = (new, 0) if self.keep is None else self._truncate(state, self.keep)
        new["weight"] = new["weight"] * decay
        new["weight"][place] = 1.0
        new["c"], new["rest"] = new["c"] * decay, new["rest"] * decay
        _write(new, slice(place, place + 1), fresh)
        new["next"] = torch.full_like(state["next"], place + 1)
        new["mass"] = new["rest"] + new["weight"].sum()
        return new

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Woodbury's identity in every unit."""
        self._only_linear(exponent)
        base, u, gram = self._parts(state, shift)
        return _like(unit_woodbury.solve(base, u, gram, _by_unit(v, u)), v)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(c / mass + shift) v + U U^T v`` in every unit."""
        base, u, _ = self._parts(state, shift)
        return _like(unit_woodbury.apply(base, u, _by_unit(v, u)), v)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """One small eigendecomposition per unit, safe for dependent rows."""
        base, u, gram = self._parts(state, shift)
        return _like(unit_woodbury.sample(base, u, gram, _by_unit(noise, u)), noise)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """The sum over the units."""
        return unit_woodbury.logdet(*self._parts(state, shift)).to(state["rows"].dtype)

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Woodbury's identity in every unit."""
        found = unit_woodbury.inverse_diagonal(*self._parts(state, shift))
        return found.to(state["rows"].dtype).reshape(state["rows"].shape[1:])

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues of all units."""
        base, u, gram = self._parts(state, shift)
        values, dtype = eigh(gram)[0], state["rows"].dtype
        least = values[:, -u.shape[1]].min() if u.shape[2] >= u.shape[1] else torch.zeros_like(values[0, 0])
        return (base + least).to(dtype), (base + values[:, -1].max()).to(dtype)

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """The units' matrices on the diagonal."""
        base, u, _ = self._parts(state, shift)
        dense = torch.block_diag(*(u @ u.mT))
        return (dense + base * torch.eye(len(dense)).to(dense)).to(state["rows"].dtype)

    def _parts(self, state: State, shift: Shift) -> tuple[float, Tensor, Tensor]:
        """``c / mass + shift``, ``U (units, d_in, window)`` and ``U^T U``, in double precision."""
        scales = _scales(state)
        rows = state["rows"].flatten(1, -2).double()
        u = (rows * scales.unsqueeze(-1)).permute(1, 2, 0)
        base = float(state["c"].double() / state["mass"].double()) + self._scalar_shift(shift)
        return base, u, _scaled_gram(state, scales)

    @staticmethod
    def _directions(state: State, rows: Tensor) -> Tensor:
        """One row for every unit, ``(1, units, d_in)``: the best direction of the unit's rows ``(n, D)``."""
        shape = state["rows"].shape[1:]
        own = rows.reshape(len(rows), math.prod(shape[:-1]), shape[-1])
        if len(rows) == 1:
            return own
        wide = own.double().transpose(0, 1)
        vectors = eigh(wide @ wide.mT)[1][..., -1:]
        return (vectors.mT @ wide).transpose(0, 1).to(rows.dtype)

    def _truncate(self, state: State, keep: int) -> tuple[State, int]:
        """The units' principal directions in the first rows, the others empty; ``mass`` stays, as the directions stand
        for all observations before them."""
        scales = _scales(state) * state["mass"].double().sqrt()
        wide = (state["rows"].flatten(1, -2).double() * scales.unsqueeze(-1)).transpose(0, 1)
        vectors = eigh(_scaled_gram(state, scales))[1][..., -keep:]
        best = (vectors.mT @ wide).flip(1).transpose(0, 1)
        new = {key: tensor if key in ("c", "mass") else torch.zeros_like(tensor) for key, tensor in state.items()}
        new["weight"][:keep] = 1.0
        _write(new, slice(0, keep), best)
        new["rest"] = state["rest"] + state["weight"].sum() - new["weight"].sum()
        return new, keep


def _by_unit(v: Tensor, u: Tensor) -> Tensor:
    """Block vectors as ``(units, batch, d_in)``, in double precision."""
    return v.reshape(-1, *u.shape[:2]).transpose(0, 1).double()


def _like(x: Tensor, v: Tensor) -> Tensor:
    """The other way round."""
    return x.transpose(0, 1).to(v.dtype).reshape(v.shape)


def _write(state: State, where: slice, fresh: Tensor) -> None:
    """Put rows ``(n, units, d_in)`` into their place in new tensors, with their inner products with all rows."""
    exponent = torch.frexp(fresh.abs().amax(-1))[1].clamp(-120, 120)
    amplitude = torch.ldexp(torch.ones_like(exponent, dtype=fresh.dtype), exponent)
    rows, dtype = state["rows"].clone(), state["rows"].dtype
    rows[where] = (fresh / amplitude.unsqueeze(-1)).to(dtype).view(-1, *rows.shape[1:])
    amplitudes, gram = state["amplitude"].clone(), state["gram"].double().sum(0)
    amplitudes[where] = amplitude.to(dtype)
    own = rows.flatten(1, -2).double().transpose(0, 1)
    products = own @ own[:, where].mT
    gram[:, :, where], gram[:, where] = products, products.mT
    word = gram.to(dtype)
    state |= {"rows": rows, "amplitude": amplitudes, "gram": torch.stack([word, (gram - word.double()).to(dtype)])}


def _scales(state: State) -> Tensor:
    """``sqrt(w_j / mass)`` times the amplitude, ``(window, units)``, in double precision."""
    weight = state["weight"].double().clamp_min(0.0)  # never negative, up to the rounding of a stored state
    return (weight / state["mass"].double()).sqrt().unsqueeze(-1) * state["amplitude"].double()


def _scaled_gram(state: State, scales: Tensor) -> Tensor:
    """The inner products of the scaled rows, ``(units, window, window)``, in double precision."""
    by_unit = scales.T
    return by_unit.unsqueeze(-1) * state["gram"].double().sum(0) * by_unit.unsqueeze(-2)
