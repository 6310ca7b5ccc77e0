"""Curvature in sample space, compressed by an interpolative decomposition (HyLo's KID)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError
from vogn.linalg import fewer_columns, low_rank
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.structures.gram import Gram
from vogn.types import Observation, Shape, State

REFINEMENTS = 3
"""Where rows coincide and the damping is small beside them, the identity loses the square of their ratio."""


@dataclass(frozen=True)
class InterpolativeGram(Structure):
    """``C (+) shift = lambda I + U_S P^T (I + Res / lambda)^-1 P U_S^T`` with ``lambda = scale + shift``.

    ``U_S`` are columns among the weighted rows ``U``; ``K ~ K_:S P^T`` by least squares (``P = [I, T]^T``, ``T =
    R_11^-1 R_12`` of a QR decomposition of ``K = U^T U``), and ``Res = K - K_:S P^T``. Its inverse is HyLo's ``(I -
    U_S M U_S^T) / lambda`` with ``Y = P^T (Res + lambda I)^-1 P`` and ``M = Y - Y (I + K_SS Y)^-1 K_SS Y``; it is
    exact if ``rank`` is at least the rank of ``U``.

    ``Res`` is not symmetric, so neither is ``C``: it has no Gaussian, and the features of Gaussians are refused.
    :class:`CompressedGram` is the symmetric variant, with errors of the same size.

    With ``curvature_decay > 0`` the old curvature enters with its large-``lambda`` limit ``U_S P^T P U_S^T``, as
    further rows. The shift is one number, because ``C`` depends on it. The state holds ``U`` as ``(*shape, r)``, ``P
    (n, r)`` and ``R = Res (n, n)``, all padded with zeros to the most that the window allows, ``columns () = r`` and
    ``scale ()``.

    Args:
        rank: columns: a whole number of at least 1, or a share in (0, 1] of the rows at hand (rounded down, at least
            one). Dependent rows are never kept.
        window: rows that are compressed, at least 1; more of them are merged into the best ones of that number first.

    Raises:
        ValueError: if the rank or the window is out of range.

    The rows are picked by pivoting, not by their length as in the authors' code, and ``1 / B`` is in every term: the
    code leaves it out of the ``K`` in ``Y``.

    Source: Mu, Soori, Can, Gurbuzbalaban, Dehnavi (2022), "HyLo: a hybrid low-rank natural gradient descent method",
    KID.
    """

    rank: int | float = 0.1
    window: int = 256

    SUPPORTS: ClassVar[frozenset[str]] = frozenset({"shift", "apply"})
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"J": 1}

    def __post_init__(self) -> None:
        fewer_columns.number_of_columns(self.rank, 1, type(self).__name__)
        if self.window < 1:
            raise ValueError(f"{type(self).__name__}: window={self.window} must be at least 1")

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No columns."""
        count = fewer_columns.number_of_columns(self.rank, self.window, type(self).__name__)
        state = Gram(window=count).init(shape, initial=initial, dtype=dtype, device=device)
        zeros = state["U"].new_zeros
        return state | {"P": zeros(self.window, state["U"].shape[-1]), "R": zeros(self.window, self.window)}

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows themselves, ``(K N, D)``."""
        return Gram().observe(state, rows)

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """The interpolation of the weighted rows."""
        old = Gram.columns(state)
        if decay:
            old = fewer_columns.merge_columns(old, state["P"][:, : old.shape[1]].double())
        rows = fewer_columns.weighted_rows(old, observation["J"], decay=decay, weight=weight, most=self.window)
        wide = rows.double()
        count = min(fewer_columns.number_of_columns(self.rank, len(rows), type(self).__name__), state["U"].shape[-1])
        index, p, rest = fewer_columns.interpolation(wide @ wide.T, count)
        new = {key: torch.zeros_like(state[key]) for key in ("U", "P", "R")}
        new["U"][..., : len(index)] = rows[index].T.reshape(*state["U"].shape[:-1], len(index))
        new["P"][: len(rows), : len(index)] = p
        new["R"][: len(rows), : len(rows)] = rest
        return new | {"columns": torch.tensor(len(index)), "scale": decay * state["scale"]}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """``(I - U_S M U_S^T) v / lambda``, refined while the residual falls, at most :data:`REFINEMENTS` times."""
        self._only_linear(exponent)
        damping, u, core = self._parts(state, shift)
        low_rank.require_positive(damping.reshape(1))
        flat = v.reshape(-1, u.shape[0]).double()
        y = core / damping
        middle = _solve((torch.eye(len(y)).to(y) + (u.T @ u) @ y).T, y.T).T

        def invert(r: Tensor) -> Tensor:
            return torch.addmm(r, (r @ u) @ middle.T, u.T, alpha=-1.0) / damping

        x = invert(flat)
        rest = flat - self._multiply(damping, u, core, x)
        for _ in range(REFINEMENTS):
            refined = x + invert(rest)
            left = flat - self._multiply(damping, u, core, refined)
            better = left.norm(dim=-1, keepdim=True) < rest.norm(dim=-1, keepdim=True)
            x, rest = torch.where(better, refined, x), torch.where(better, left, rest)
        return x.to(v.dtype).reshape(v.shape)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(C (+) shift) v``."""
        damping, u, core = self._parts(state, shift)
        flat = v.reshape(-1, u.shape[0]).double()
        return self._multiply(damping, u, core, flat).to(v.dtype).reshape(v.shape)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """Refused: the interpolated matrix is not symmetric."""
        raise self._refusal("sample")

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """Refused: the interpolated matrix is not symmetric."""
        raise self._refusal("logdet")

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Refused: the interpolated matrix is not symmetric."""
        raise self._refusal("inverse_diagonal")

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``C (+) shift``; not symmetric where rows have been left out."""
        damping, u, core = self._parts(state, shift)
        return (u @ core @ u.T + damping * torch.eye(len(u)).to(u)).to(state["U"].dtype)

    def _parts(self, state: State, shift: Shift) -> tuple[Tensor, Tensor, Tensor]:
        """``lambda``, ``U_S`` and ``P^T (I + Res / lambda)^-1 P``, in double precision."""
        damping = state["scale"].double() + self._scalar_shift(shift)
        u, rest = Gram.columns(state).double(), state["R"].double()
        p = state["P"][:, : u.shape[1]].double()
        rounding = len(rest) * torch.finfo(rest.dtype).eps * rest.abs().max()
        positive = torch.maximum(damping, rounding.clamp_min(1e-300))
        core = p.T @ _solve(positive * torch.eye(len(rest)).to(rest) + rest, positive * p)
        return damping, u, core

    @staticmethod
    def _multiply(damping: Tensor, u: Tensor, core: Tensor, v: Tensor) -> Tensor:
        return torch.addmm(damping * v, (v @ u) @ core.T, u.T)

    def _refusal(self, feature: str) -> UnsupportedObservationError:
        return UnsupportedObservationError(
            f"InterpolativeGram has no {feature}: an interpolated curvature is not symmetric; use CompressedGram (its "
            "symmetric variant) or variational=False"
        )


def _solve(matrix: Tensor, right: Tensor) -> Tensor:
    """``matrix^-1 right``; an interpolation promises no inverse.

    Raises:
        NotPositiveDefiniteError: if there is none.
    """
    solution, failed = torch.linalg.solve_ex(matrix, right)
    if bool(failed):
        raise NotPositiveDefiniteError(
            "an interpolated curvature plus its shift has no inverse; raise the damping, or use CompressedGram"
        )
    return solution
