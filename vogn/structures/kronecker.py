"""A Kronecker product of an input factor and an output factor (K-FAC)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg.eigh import diagonal_from_basis, eigh, from_basis, to_basis
from vogn.linalg.factors import Sharing, kronecker_factors
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.structures.evidence import blend, require_positive_without_shift
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class Kronecker(Structure):
    """``C = S (x) A`` with ``A (i, i)`` the second moment of inputs and ``S (o, o)`` that of output gradients.

    :meth:`update` moves ``A`` and ``S``; every other method reads their eigendecomposition of the last
    :meth:`refresh`, which serves any shift.

    Args:
        damping: ``"exact"``: ``C (+) shift = S (x) A + shift I``. ``"factored"``:
            ``(S + sqrt(shift) / pi I) (x) (A + pi sqrt(shift) I)``, ``pi^2 = (tr A / i) / (tr S / o)``, and ``pi = 1``
            where a trace is zero: a different matrix, and :meth:`to_dense` says so.
        sharing: how positions enter, see :func:`vogn.linalg.factors.kronecker_factors`.
        max_dim: largest factor that :meth:`fits`.

    Raises:
        ValueError: if an option is unknown.

    Source: Martens, Grosse 2015, sections 3 and 6.3; Eschenhagen et al. 2023 for ``sharing``.
    """

    damping: Literal["exact", "factored"] = "exact"
    sharing: Sharing = "expand"
    max_dim: int = 8192

    SUPPORTS: ClassVar[frozenset[str]] = frozenset({"shift", "apply", "sample", "logdet", "inverse_diagonal"})
    DEGREE: ClassVar[dict[str, int]] = {"A": 0, "S": 2}
    REFRESHED: ClassVar[tuple[str, ...]] = ("QA", "x", "QS", "y")

    def __post_init__(self) -> None:
        self._check_option("damping", self.damping, ("exact", "factored"))
        self._check_option("sharing", self.sharing, ("expand", "reduce"))

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """``A = S = sqrt(initial) I``."""
        *lead, o, i = shape
        state: State = {}
        for size, factor, values, basis in ((i, "A", "x", "QA"), (o, "S", "y", "QS")):
            eye = torch.eye(size, dtype=dtype, device=device).expand(*lead, size, size)
            state[factor] = eye * initial**0.5
            state[basis] = eye.clone()
            state[values] = torch.full((*lead, size), initial**0.5, dtype=dtype, device=device)
        return state

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """Sums of input and output second moments."""
        a, s = kronecker_factors(rows, self.sharing)
        return {"A": a, "S": s}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """Each factor is averaged on its own."""
        return state | {key: blend(state[key], observation[key], decay, weight) for key in ("A", "S")}

    def refresh(self, state: State) -> State:
        """Eigendecompositions of both factors."""
        x, qa = eigh(state["A"])
        y, qs = eigh(state["S"])
        return state | {"QA": qa, "x": x, "QS": qs, "y": y}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Division in the eigenbasis."""
        self._only_linear(exponent)
        return self._scale(state, v, self._eigenvalues(state, shift).reciprocal())

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """Multiplication in the eigenbasis."""
        y, x, rest = self._damped(state, shift)
        return self._scale(state, v, y.unsqueeze(-1) * x.unsqueeze(-2) + rest)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """The symmetric root, ``U f(U^T noise)``."""
        return self._scale(state, noise, self._eigenvalues(state, shift).rsqrt())

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """Sum of logarithms of the eigenvalues."""
        return self._eigenvalues(state, shift).log().sum()

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """``QS^2 (1 / eigenvalues) (QA^2)^T``."""
        return diagonal_from_basis(self._eigenvalues(state, shift).reciprocal(), state["QS"], state["QA"])

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``S (x) A`` with the damping of this configuration, block-diagonal over ``lead``."""
        y, x, rest = self._damped(state, shift)
        qs, qa = state["QS"], state["QA"]
        s = ((qs * y.unsqueeze(-2)) @ qs.mT).reshape(-1, *qs.shape[-2:])
        a = ((qa * x.unsqueeze(-2)) @ qa.mT).reshape(-1, *qa.shape[-2:])
        dense = torch.block_diag(*(torch.kron(left, right) for left, right in zip(s, a, strict=True)))
        dense.diagonal().add_(rest)
        return dense

    def fits(self, shape: Shape) -> bool:
        """Whether both factors are at most ``max_dim`` wide."""
        return max(shape[-2:]) <= self.max_dim

    def _damped(self, state: State, shift: Shift) -> tuple[Tensor, Tensor, float]:
        """Eigenvalues of both factors with their damping, and what is left to add to the products."""
        shift = self._scalar_shift(shift)
        y, x = state["y"], state["x"]
        if self.damping == "exact":
            return y, x, shift
        mean_x, mean_y = x.mean(-1, keepdim=True), y.mean(-1, keepdim=True)
        pi = torch.where((mean_x > 0) & (mean_y > 0), (mean_x / mean_y).sqrt(), 1.0)
        return y + shift**0.5 / pi, x + shift**0.5 * pi, 0.0

    def _eigenvalues(self, state: State, shift: Shift) -> Tensor:
        y, x, rest = self._damped(state, shift)
        return require_positive_without_shift(y.unsqueeze(-1) * x.unsqueeze(-2) + rest, shift)

    def _scale(self, state: State, v: Tensor, factor: Tensor) -> Tensor:
        return from_basis(to_basis(v, state["QS"], state["QA"]).mul_(factor), state["QS"], state["QA"])
