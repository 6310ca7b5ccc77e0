"""A Kronecker product of an input factor and an output factor (K-FAC)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from vogn.linalg.factors import Sharing, kronecker_factors
from vogn.linalg.nearest_kronecker import nearest_kronecker
from vogn.linalg.rows import AnyRows
from vogn.linalg.sides import (
    compose,
    decompose,
    diagonal_from_basis,
    from_basis,
    identity,
    input_variance,
    is_diagonal,
    multiply,
    power,
    quotient_kernel,
    side,
    to_basis,
)
from vogn.structures.base import Shift, Structure
from vogn.structures.evidence import blend, require_positive_without_shift
from vogn.types import Observation, Shape, State

LARGEST_PI = 2.0**50
"""Factored damping keeps ``pi`` between this number and its inverse: beyond, float32 would overflow."""


class _Powers(NamedTuple):
    """Powers of both damped factors, and what they were made of."""

    left: Tensor
    right: Tensor
    made_of: tuple[Tensor, ...]


_POWERS: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""Basis of the input factor to its :class:`_Powers` by exponent and shift: made of the state, and gone with it."""


@dataclass(frozen=True)
class Kronecker(Structure):
    """``C = S (x) A`` with ``A (i, i)`` the second moment of inputs and ``S (o, o)`` that of output gradients.

    :meth:`update` moves ``A`` and ``S``; every other method reads their eigendecomposition of the last
    :meth:`refresh`, which serves any shift. A factor larger than ``max_dim`` (a vocabulary) keeps only its diagonal and
    is stored as ``(*lead, 1, n)``; the other factor stays a matrix. The input factor of an embedding is diagonal
    anyway under ``sharing="expand"``.

    With factored damping, inverses and roots are powers of the factors. Those that were used last (one for steps, one
    for samples) are kept beside the state until the next refresh: two products instead of four, for up to as much
    memory again as the state has.

    Args:
        damping: ``"exact"``: ``C (+) shift = S (x) A + shift I``. ``"factored"``:
            ``(S + sqrt(shift) / pi I) (x) (A + pi sqrt(shift) I)``, ``pi^2 = (tr A / i) / (tr S / o)``, and ``pi = 1``
            where a trace is zero, kept within ``2^-50 ... 2^50``: a different matrix, and :meth:`to_dense` says so.
        sharing: how positions enter: ``"expand"`` (as further examples) or ``"reduce"`` (averaged inputs, summed output
            gradients); see :func:`vogn.linalg.factors.kronecker_factors`.
        max_dim: largest factor that is kept as a matrix, >= 0.

    Raises:
        ValueError: if an option is unknown.

    Source: Martens, Grosse 2015, sections 3 and 6.3; Eschenhagen et al. 2023 for ``sharing``.
    """

    damping: Literal["exact", "factored"] = "exact"
    sharing: Sharing = "expand"
    max_dim: int = 8192

    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "apply", "sample", "logdet", "inverse_diagonal", "eigenvalue_bounds"}
    )
    DEGREE: ClassVar[dict[str, int]] = {"A": 0, "S": 2, "positions": 0}
    REFRESHED: ClassVar[tuple[str, ...]] = ("QA", "x", "QS", "y")
    EARLIER: ClassVar[tuple[str, ...]] = ("earlier_S", "earlier_A")

    def __post_init__(self) -> None:
        self._check_option("damping", self.damping, ("exact", "factored"))
        self._check_option("sharing", self.sharing, ("expand", "reduce"))
        if self.max_dim < 0:
            raise ValueError(f"Kronecker: max_dim={self.max_dim} must be at least 0 (0: both factors diagonal)")

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """``A = S = sqrt(initial) I``."""
        *lead, o, i = shape
        state: State = {}
        for size, factor, values, basis in ((i, "A", "x", "QA"), (o, "S", "y", "QS")):
            diagonal = size > self.max_dim
            for key, scale in ((factor, initial**0.5), (basis, 1.0)):
                state[key] = identity(tuple(lead), size, diagonal=diagonal, dtype=dtype, device=device, scale=scale)
            state[values] = torch.full((*lead, size), initial**0.5, dtype=dtype, device=device)
        return state

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """Sums of input and output second moments, and the number of inputs."""
        diagonal = is_diagonal(state["S"]), is_diagonal(state["A"])
        a, s, positions = kronecker_factors(rows, self.sharing, diagonal)
        return {"A": a, "S": s, "positions": positions}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """Each factor is averaged on its own."""
        new = {"A": mean_input(observation, "A"), "S": observation["S"]}
        return state | {key: blend(state[key], new[key], decay, weight) for key in ("A", "S")}

    def refresh(self, state: State) -> State:
        """Eigendecompositions of both factors; with earlier data, of the product nearest to the sum of both."""
        s, a = state["S"], state["A"]
        if "earlier_S" in state:
            both = torch.stack([s, state["earlier_S"]]), torch.stack([a, state["earlier_A"]])
            s, a = nearest_kronecker(s.new_ones(2), *both)
        x, qa = decompose(a)
        y, qs = decompose(s)
        return state | {"QA": qa, "x": x, "QS": qs, "y": y}

    def with_earlier(self, state: State, other: State, factor: float) -> State:
        """See :meth:`Structure.with_earlier`; ``C`` is the Kronecker product nearest to the sum."""
        s, a = self.factors(other)
        return self.refresh(state | {"earlier_S": factor * s, "earlier_A": a})

    def earlier_product(self, state: State, v: Tensor) -> Tensor:
        """``E_S v E_A``."""
        if "earlier_S" not in state:
            return torch.zeros_like(v)
        return multiply(v, state["earlier_S"], state["earlier_A"])

    def factors(self, state: State) -> tuple[Tensor, Tensor]:
        """``S`` and ``A`` of the last :meth:`refresh`, in the shapes of their bases."""
        sides = ((state["y"], state["QS"]), (state["x"], state["QA"]))
        s, a = (side(values, basis) for values, basis in sides)
        return s, a

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Division in the eigenbasis; between the inverses of two damped factors."""
        self._only_linear(exponent)
        if self.damping == "factored":
            return self._between(state, v, shift, -1.0)
        kernel = quotient_kernel(v, state["QS"], state["QA"], state["y"], state["x"])
        if kernel is not None and not isinstance(shift, Tensor) and shift > 0:
            y, x, rest = self.damped(state, shift)
            return kernel(v, state["QS"], state["QA"], y.unsqueeze(-1) * x.unsqueeze(-2), rest)
        return self._scale(state, v, self._eigenvalues(state, shift).reciprocal())

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """Multiplication in the eigenbasis."""
        y, x, rest = self.damped(state, shift)
        return self._scale(state, v, y.unsqueeze(-1) * x.unsqueeze(-2) + rest)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """The symmetric root, ``U f(U^T noise)``; between the roots of two damped factors."""
        if self.damping == "factored":
            return self._between(state, noise, shift, -0.5)
        return self._scale(state, noise, self._eigenvalues(state, shift).rsqrt())

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """Sum of logarithms of the eigenvalues."""
        return self._eigenvalues(state, shift).log().sum()

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """``QS^2 (1 / eigenvalues) (QA^2)^T``."""
        return diagonal_from_basis(self._eigenvalues(state, shift).reciprocal(), state["QS"], state["QA"])

    def input_variance(self, state: State, shape: Shape, a: Tensor, shift: Shift, *, diagonal: bool = False) -> Tensor:
        """In the basis: squared coordinates of the input over the eigenvalues, then back to the outputs."""
        return input_variance(self._eigenvalues(state, shift).reciprocal(), state["QS"], state["QA"], a, diagonal)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues."""
        values = self._eigenvalues(state, shift)
        return values.min(), values.max()

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``S (x) A`` with the damping of this configuration, block-diagonal over ``lead``."""
        y, x, rest = self.damped(state, shift)
        s, a = compose(y, state["QS"]), compose(x, state["QA"])
        pairs = zip(s.reshape(-1, *s.shape[-2:]), a.reshape(-1, *a.shape[-2:]), strict=True)
        dense = torch.block_diag(*(torch.kron(left, right) for left, right in pairs))
        dense.diagonal().add_(rest)
        return dense

    def exactly_damped(self) -> Structure:
        """With ``damping="exact"``."""
        return replace(self, damping="exact")

    def restriction(self, shape: Shape) -> str:
        """Names the factors that are too large for a matrix."""
        return diagonal_sides(shape, self.max_dim, type(self).__name__)

    def damped(self, state: State, shift: Shift) -> tuple[Tensor, Tensor, float]:
        """Eigenvalues ``(*lead, n)`` of ``S`` and ``A`` with their damping, and what is left to add to the products."""
        shift = self._scalar_shift(shift)
        y, x = state["y"], state["x"]
        if self.damping == "exact":
            return y, x, shift
        mean_x, mean_y = x.mean(-1, keepdim=True), y.mean(-1, keepdim=True)
        ratio = (mean_x.sqrt() / mean_y.sqrt()).clamp(1.0 / LARGEST_PI, LARGEST_PI)
        pi = torch.where((mean_x > 0) & (mean_y > 0), ratio, 1.0)
        return y + shift**0.5 / pi, x + shift**0.5 * pi, 0.0

    def _eigenvalues(self, state: State, shift: Shift) -> Tensor:
        y, x, rest = self.damped(state, shift)
        return require_positive_without_shift(y.unsqueeze(-1) * x.unsqueeze(-2) + rest, shift)

    def _between(self, state: State, v: Tensor, shift: Shift, exponent: float) -> Tensor:
        """``S^exponent v A^exponent`` with damped factors, which are powers until the next refresh: two products."""
        key = exponent, self._scalar_shift(shift)
        known = _POWERS.setdefault(state["QA"], {})
        made_of = state["x"], state["y"], state["QS"]
        if key not in known or any(a is not b for a, b in zip(known[key].made_of, made_of, strict=True)):
            if key[1] <= 0:
                self._eigenvalues(state, shift)  # raises if there is no inverse
            y, x, _ = self.damped(state, shift)
            while len(known) > 1:  # one for steps, one for samples
                del known[next(iter(known))]
            known[key] = _Powers(power(y, state["QS"], exponent), power(x, state["QA"], exponent), made_of)
        return multiply(v, known[key].left, known[key].right)

    def _scale(self, state: State, v: Tensor, factor: Tensor) -> Tensor:
        return from_basis(to_basis(v, state["QS"], state["QA"]).mul_(factor), state["QS"], state["QA"])


def mean_input(observation: Observation, leaf: str) -> Tensor:
    """The second moment of one input: the sum over all of them divided by their number; zero if there are none."""
    count = observation["positions"]
    return observation[leaf] / count.clamp_min(torch.finfo(count.dtype).tiny)[..., None, None]


def diagonal_sides(shape: Shape, max_dim: int, name: str) -> str:
    """The note of a block whose factors are in part diagonal because of their size; ``""`` for others."""
    o, i = shape[-2:]
    large = [f"{side} factor ({size})" for side, size in (("output", o), ("input", i)) if size > max_dim]
    if not large:
        return ""
    return f"diagonal {' and '.join(large)}: larger than max_dim={max_dim}; {name}(max_dim=...) sets the limit"
