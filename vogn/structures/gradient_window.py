"""A window of the last mini-batch gradients (M-FAC, GGT, TONGA)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg import low_rank, low_rank_powers, rank_one_updates, woodbury
from vogn.linalg.eigh import eigh
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.types import Observation, Shape, State

Law = Literal["decay", "fixed", "average"]
InverseForm = Literal["cholesky", "static", "dynamic"]


@dataclass(frozen=True)
class GradientWindow(Structure):
    """``C = (c I + sum_j w_j g_j g_j^T) / mass`` with the last ``window`` observations ``g_j``.

    An observation is usually one mini-batch gradient; of per-example rows, the best ``columns`` directions are kept.
    The order of the rows is of no consequence, so that a ring holds them. Their inner products are kept: a new row
    costs ``O(D window)``, and a solve ``O(D window + window^3)``. They are never updated, only replaced, so that they
    do not drift; a truncation computes them anew from the rows.

    What a new observation does (``decay`` and ``weight`` are what the engine passes to :meth:`update`):

    =============  ==================================================================================================
    ``law``        meaning
    =============  ==================================================================================================
    ``"decay"``    ``C <- decay C + weight g g^T``, then the oldest row leaves. ``mass = 1``
    ``"fixed"``    ``C <- decay C + 1/window g g^T``, then the oldest row leaves: with ``decay = 1`` the sum over the
                   window divided by its size, also while it is not full. ``weight`` is ignored. ``mass = 1`` (M-FAC)
    ``"average"``  ``C = sum_j decay^age_j g_j g_j^T / sum_j decay^age_j``: an average at any step, whatever left the
                   window. ``weight`` is ignored; ``c`` counts as an observation ``c I`` older than all others. ``mass``
                   is the sum of the weights, and ``mass C`` the sum that GGT and TONGA write
    =============  ==================================================================================================

    The state: ``rows (window * columns, *shape)``, each divided by ``amplitude``, a power of 2 near its largest
    element; ``gram (2, rows, rows)``, the inner products of ``rows`` in double precision as a sum of two words;
    ``weight (rows,)``, ``w_j``; ``c``; ``rest``, the part of ``mass`` that is not in ``weight``; ``mass``; ``next``,
    the row that is written next.

    Args:
        window: observations in the window, >= 1.
        columns: directions kept of one observation, >= 1; a mini-batch gradient has one.
        law: see above.
        keep: where the window is full, replace its rows by this many principal directions, which loses the rest of the
            matrix, and go on behind them (TONGA); ``None`` drops the oldest observation. From 1 to
            ``(window - 1) * columns``.
        inverse: how to solve: ``"cholesky"`` of a ``window x window`` matrix, or M-FAC's ``"static"`` or ``"dynamic"``
            recursion. Numbers are the same up to rounding; all are refined iteratively. Where the trace of the sum is
            more than ``low_rank.SQUARED_LIMIT`` times the shift, all three use an orthonormal basis of the rows.
            ``"static"`` also gives the diagonal of the inverse by its recursion.

    Raises:
        ValueError: if an option is out of range.

    Source: Frantar, Kurtic, Alistarh (2021), M-FAC; Agarwal et al. (2019), GGT; Le Roux, Manzagol, Bengio (2008),
    TONGA.
    """

    window: int = 32
    columns: int = 1
    law: Law = "decay"
    keep: int | None = None
    inverse: InverseForm = "cholesky"

    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "apply", "sample", "logdet", "exponent", "inverse_diagonal", "eigenvalue_bounds", "pseudo_inverse"}
    )
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"J": 1}

    def __post_init__(self) -> None:
        self._check_option("law", self.law, ("decay", "fixed", "average"))
        self._check_option("inverse", self.inverse, ("cholesky", "static", "dynamic"))
        for name, value in (("window", self.window), ("columns", self.columns)):
            if value < 1:
                raise ValueError(f"GradientWindow: {name}={value} must be at least 1")
        if self.keep is None:
            return
        if not 1 <= self.keep <= (self.window - 1) * self.columns:
            raise ValueError(
                f"GradientWindow: keep={self.keep} must lie between 1 and (window - 1) * columns = "
                f"{(self.window - 1) * self.columns}; raise window"
            )

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """An empty window, ``c = initial``."""
        count = self.window * min(self.columns, math.prod(shape))
        known = float(initial > 0.0 and self.law == "average")

        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=dtype, device=device)

        return {
            "rows": zeros(count, *shape),
            "amplitude": zeros(count),
            "gram": zeros(2, count, count),
            "weight": zeros(count),
            "c": torch.full((), initial, dtype=dtype, device=device),
            "rest": torch.full((), known, dtype=dtype, device=device),
            "mass": torch.ones((), dtype=dtype, device=device),
            "next": zeros(),
        }

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows themselves, ``(K N, D)``."""
        return {"J": rows.dense().flatten(2).flatten(0, 1)}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """The new observation into the window; see ``law``."""
        fresh = self._directions(state, observation["J"])
        weight = {"decay": weight, "fixed": 1.0 / self.window, "average": 1.0}[self.law]
        new, count = dict(state), len(fresh)
        place = round(float(state["next"]))
        if place + count > len(state["weight"]):
            new, place = (new, 0) if self.keep is None else self._truncate(state)
        where = slice(place, place + count)
        new["weight"] = new["weight"] * decay
        new["weight"][where] = weight
        new["c"], new["rest"] = new["c"] * decay, new["rest"] * decay
        _write(new, where, fresh)
        new["next"] = torch.full_like(state["next"], place + count)
        if self.law == "average":
            new["mass"] = new["rest"] + new["weight"].sum() / count
        return new

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Woodbury's identity in the form that ``inverse`` says; a power through the eigenvalues of the window."""
        _, total, u = self._parts(state, shift)
        flat, gram = v.reshape(-1, len(u)), _scaled_gram(state)
        if exponent != 1.0:
            c = float(state["c"]) / float(state["mass"])
            power = low_rank_powers.power_solve
            return power(c, u, flat, gram, shift=self._scalar_shift(shift), exponent=exponent).reshape(v.shape)
        squared = float(gram.diagonal().sum()) <= low_rank.SQUARED_LIMIT * total
        if self.inverse == "cholesky" or not squared:
            return woodbury.solve(total, u, flat.double(), gram).to(v.dtype).reshape(v.shape)
        _require_positive(total)
        return self._recursion(total, u, flat, gram).reshape(v.shape)

    def _recursion(self, s: float, u: Tensor, v: Tensor, gram: Tensor) -> Tensor:
        """M-FAC's form of ``(s I + U U^T)^-1 v``, refined twice."""
        x = v.double()
        product: Callable[[Tensor], Tensor]
        if self.inverse == "static":
            vectors, q = rank_one_updates.static_factors(u, s)
            product = partial(rank_one_updates.static_solve, vectors, q, s)
        else:
            product = partial(rank_one_updates.dynamic_solve, u, rank_one_updates.dynamic_factors(gram, s), s)
        base, found = torch.full_like(x[0], s), product(x)
        for _ in range(2):
            found = found + product(x - low_rank.apply(base, u, found))
        return found.to(v.dtype)

    def pseudo_solve(self, state: State, v: Tensor, cut: float, *, exponent: float = 1.0) -> Tensor:
        """See :meth:`Structure.pseudo_solve`."""
        _, _, u = self._parts(state, 0.0)
        c = float(state["c"]) / float(state["mass"])
        flat = v.reshape(-1, len(u))
        pseudo = low_rank_powers.pseudo_solve
        return pseudo(c, u, flat, _scaled_gram(state), cut=cut, exponent=exponent).reshape(v.shape)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(c / mass + shift) v + U U^T v``."""
        base, _, u = self._parts(state, shift)
        return low_rank.apply(base, u, v.reshape(-1, len(u)).double()).to(v.dtype).reshape(v.shape)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """One small eigendecomposition, safe for dependent rows."""
        _, total, u = self._parts(state, shift)
        found = woodbury.sample(total, u, noise.reshape(-1, len(u)).double(), _scaled_gram(state))
        return found.to(noise.dtype).reshape(noise.shape)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``D log (c / mass + shift)`` plus the logarithmic determinant of a small matrix."""
        _, total, u = self._parts(state, shift)
        return woodbury.logdet(total, u, _scaled_gram(state)).to(state["rows"].dtype)

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Woodbury's identity, or M-FAC's static recursion."""
        base, total, u = self._parts(state, shift)
        gram, shape = _scaled_gram(state), state["rows"].shape[1:]
        squared = float(gram.diagonal().sum()) <= low_rank.SQUARED_LIMIT * total
        if self.inverse != "static" or not squared:
            return low_rank.inverse_diagonal(base, u).to(state["rows"].dtype).reshape(shape)
        _require_positive(total)
        found = rank_one_updates.static_inverse_diagonal(*rank_one_updates.static_factors(u, total), total)
        bound = (total + u.square().sum(-1)).reciprocal()  # from below: positive under cancellation
        return torch.maximum(found, bound).to(state["rows"].dtype).reshape(shape)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues."""
        base, _, u = self._parts(state, shift)
        values, dtype = eigh(_scaled_gram(state))[0], state["rows"].dtype
        least = values[-len(u)] if u.shape[1] >= len(u) else torch.zeros_like(values[-1])
        return (base[0] + least).to(dtype), (base[0] + values[-1]).to(dtype)

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``U U^T + (c / mass + shift) I``."""
        base, _, u = self._parts(state, shift)
        return (u @ u.T + base.diag()).to(state["rows"].dtype)

    def _parts(self, state: State, shift: Shift) -> tuple[Tensor, float, Tensor]:
        """``c / mass + shift`` as a vector ``(D,)`` and as a number, and ``U (D, rows)``, in double precision.

        In single precision, rounding alone would move a gradient out of the span of its own row.
        """
        rows = state["rows"].flatten(1)
        u = (rows.double() * _scales(state).unsqueeze(-1)).T
        base = (state["c"].double() / state["mass"].double() + self._scalar_shift(shift)).expand(rows.shape[1])
        return base, float(base[0]), u

    def _directions(self, state: State, rows: Tensor) -> Tensor:
        """The best ``columns`` directions of the rows ``(n, D)``, filled up with zeros."""
        count = len(state["weight"]) // self.window
        if len(rows) > count:
            wide = rows.double()
            vectors = eigh(wide @ wide.T)[1][:, -count:]
            return (vectors.T @ wide).to(rows.dtype)
        return torch.cat([rows, rows.new_zeros(count - len(rows), rows.shape[1])])

    def _truncate(self, state: State) -> tuple[State, int]:
        """The window's principal directions in its first rows, the others empty; the inner products are computed anew.

        ``mass`` stays: the directions stand for all observations before them.
        """
        assert self.keep is not None
        per_observation = len(state["weight"]) // self.window
        keep = min(self.keep, (self.window - 1) * per_observation)
        scales = _scales(state) * state["mass"].double().sqrt()
        wide = state["rows"].flatten(1).double() * scales.unsqueeze(-1)
        gram = scales.unsqueeze(-1) * state["gram"].double().sum(0) * scales
        best = eigh(gram)[1][:, -keep:].T.flip(0) @ wide
        new = {key: tensor if key in ("c", "mass") else torch.zeros_like(tensor) for key, tensor in state.items()}
        new["weight"][:keep] = 1.0
        _write(new, slice(0, keep), best)
        gone = state["weight"].sum() - new["weight"].sum()
        new["rest"] = state["rest"] + gone / per_observation
        return new, keep


def _write(state: State, where: slice, fresh: Tensor) -> None:
    """Put rows ``(n, D)`` into their place in new tensors, with their inner products with all rows."""
    exponent = torch.frexp(fresh.abs().amax(1))[1].clamp(-120, 120)
    amplitude = torch.ldexp(torch.ones_like(exponent, dtype=fresh.dtype), exponent)
    rows, dtype = state["rows"].clone(), state["rows"].dtype
    rows[where] = (fresh / amplitude.unsqueeze(-1)).to(dtype).view(-1, *rows.shape[1:])
    amplitudes, gram = state["amplitude"].clone(), state["gram"].double().sum(0)
    amplitudes[where] = amplitude.to(dtype)
    flat = rows.flatten(1).double()
    products = flat @ flat[where].T
    gram[:, where], gram[where] = products, products.T
    word = gram.to(dtype)
    state |= {"rows": rows, "amplitude": amplitudes, "gram": torch.stack([word, (gram - word.double()).to(dtype)])}


def _scales(state: State) -> Tensor:
    """``sqrt(w_j / mass)`` times the amplitude, in double precision: what a stored row is multiplied with in ``U``."""
    weight = state["weight"].double().clamp_min(0.0)  # never negative, up to the rounding of a stored state
    return (weight / state["mass"].double()).sqrt() * state["amplitude"].double()


def _scaled_gram(state: State) -> Tensor:
    """``U^T U`` in double precision, ``(rows, rows)``."""
    scales = _scales(state)
    return scales.unsqueeze(-1) * state["gram"].double().sum(0) * scales


def _require_positive(total: float) -> None:
    """Raise unless the smallest eigenvalue that the shift leaves is positive."""
    if not total > 0:
        raise NotPositiveDefiniteError(
            f"the smallest eigenvalue of a window of gradients plus its shift is {total:.3g}; "
            "set weight_decay, damping or initial_curvature above 0"
        )
