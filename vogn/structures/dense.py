"""A full matrix over all parameters of a block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg.cholesky import (
    cholesky,
    cholesky_inverse_diagonal,
    cholesky_logdet,
    cholesky_sample,
    cholesky_solve,
)
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.structures.earlier import kept, with_earlier
from vogn.structures.evidence import blend
from vogn.types import Observation, Shape, State

EXACT_SPECTRUM = 1024
"""Largest size whose eigenvalues :meth:`Dense.eigenvalue_bounds` computes."""


@dataclass(frozen=True)
class Dense(Structure):
    """The full matrix ``C``; the reference for small blocks.

    The state holds ``C`` as ``(*shape, *shape)``: a view of the ``(D, D)`` matrix that remembers the block shape.
    Where an observation holds both channels, the probe is the evidence.

    Args:
        negative: what to do with indefinite evidence (probes). ``"raise"``: factorising ``C + shift I`` raises once it
            is not positive definite. ``"retract"``: with ``Delta = weight H - (1 - decay) C`` the update is
            ``C + Delta + Delta (C + shift I)^-1 Delta / 2``, which keeps ``C + shift I`` positive definite for any
            symmetric ``H``; it needs ``C + shift I`` positive definite before.
        max_dim: largest ``D`` that :meth:`fits`.

    Raises:
        ValueError: if ``negative`` is unknown.

    Source: Lin, Schmidt, Khan 2020, "Handling the positive-definite constraint in the Bayesian learning rule".
    """

    negative: Literal["raise", "retract"] = "raise"
    max_dim: int = 8192

    OBSERVES: ClassVar[frozenset[str]] = frozenset({"rows", "probe"})
    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "tensor_shift", "apply", "sample", "logdet", "inverse_diagonal", "eigenvalue_bounds"}
    )
    DEGREE: ClassVar[dict[str, int]] = {"rows": 2, "probe": 1}
    EARLIER: ClassVar[tuple[str, ...]] = ("earlier",)

    def __post_init__(self) -> None:
        self._check_option("negative", self.negative, ("raise", "retract"))

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """``C = initial I``."""
        eye = torch.eye(math.prod(shape), dtype=dtype, device=device) * initial
        return {"C": eye.reshape(*shape, *shape)}

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """``J^T J``."""
        flat = rows.dense().flatten(2).flatten(0, 1)
        return {"rows": (flat.T @ flat).view_as(state["C"])}

    def observe_probe(self, state: State, probe: Tensor, response: Tensor) -> Observation:
        """The symmetric part of ``probe response^T``."""
        half = torch.outer(probe.flatten(), response.flatten()).mul_(0.5)
        return {"probe": (half + half.T).view_as(state["C"])}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """``decay C + weight C_hat``, or the retraction for probes."""
        channel = "probe" if "probe" in observation else "rows"
        evidence = with_earlier(observation[channel], state, "earlier")
        if channel == "rows" or self.negative == "raise":
            return {"C": blend(state["C"], evidence, decay, weight)} | kept(state, self.EARLIER)
        delta = blend(self._flat(evidence), self._flat(state["C"]), weight, decay - 1.0)
        half = torch.linalg.solve_triangular(self._root(state, shift), delta, upper=False)
        new = torch.addmm(self._flat(state["C"]) + delta, half.T, half, alpha=0.5)
        return {"C": new.view_as(state["C"])} | kept(state, self.EARLIER)

    def with_earlier(self, state: State, other: State, factor: float) -> State:
        """See :meth:`Structure.with_earlier`."""
        earlier = factor * other["C"]
        return state | {"C": state["C"] + earlier, "earlier": earlier}

    def earlier_product(self, state: State, v: Tensor) -> Tensor:
        """``E v``."""
        if "earlier" not in state:
            return torch.zeros_like(v)
        matrix = self._flat(state["earlier"])
        return (v.reshape(-1, matrix.shape[0]) @ matrix).reshape(v.shape)

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Two triangular solves after a Cholesky factorisation."""
        self._only_linear(exponent)
        root = self._root(state, shift)
        return cholesky_solve(root, v.reshape(-1, root.shape[0])).reshape(v.shape)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``C v + shift v``."""
        matrix = self._flat(state["C"])
        return (v.reshape(-1, matrix.shape[0]) @ matrix).reshape(v.shape).add_(v * shift)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """``R^-T noise`` with ``C + shift I = R R^T``."""
        root = self._root(state, shift)
        return cholesky_sample(root, noise.reshape(-1, root.shape[0])).reshape(noise.shape)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``2 sum log R_jj``."""
        return cholesky_logdet(self._root(state, shift))

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Column norms of ``R^-1``."""
        shape = state["C"].shape[: state["C"].ndim // 2]
        return cholesky_inverse_diagonal(self._root(state, shift)).reshape(shape)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues up to ``D = 1024``; beyond, ``1 / tr (C + shift I)^-1`` and the largest row sum of
        absolute values."""
        dense = self.to_dense(state, shift)
        if len(dense) <= EXACT_SPECTRUM:
            values = torch.linalg.eigvalsh(dense)
            return values[0], values[-1]
        return self.inverse_diagonal(state, shift).sum().reciprocal(), dense.abs().sum(-1).max()

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``C + shift I``."""
        dense = self._flat(state["C"]).clone()
        if isinstance(shift, Tensor):
            shift = shift.expand(state["C"].shape[: state["C"].ndim // 2]).flatten()
        dense.diagonal().add_(shift)
        return dense

    def fits(self, shape: Shape) -> bool:
        """Whether ``D <= max_dim``."""
        return math.prod(shape) <= self.max_dim

    def _flat(self, matrix: Tensor) -> Tensor:
        size = math.isqrt(matrix.numel())
        return matrix.reshape(size, size)

    def _root(self, state: State, shift: Shift) -> Tensor:
        remedy = "set weight_decay, damping or initial_curvature above 0"
        if self.negative == "raise":
            remedy += ", or negative='retract' if the statistic is indefinite (Price, Hutchinson)"
        rescue = bool((shift > 0).all()) if isinstance(shift, Tensor) else shift > 0
        return cholesky(self.to_dense(state, shift), remedy=remedy, rescue=rescue)
