"""The interface of a matrix family that stores curvature.

A structure is a frozen configuration without tensors; its state is a plain dictionary of tensors. Block vectors have
shape ``(*batch, *lead, d_out, d_in)``. ``C`` is the curvature of the mean loss per example; ``shift`` is what is added
to it (prior plus damping), and :meth:`Structure.to_dense` is the meaning of every other method.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.linalg.rows import AnyRows
from vogn.types import Observation, Shape, State

Feature = Literal[
    "shift",
    "tensor_shift",
    "apply",
    "sample",
    "logdet",
    "exponent",
    "inverse_diagonal",
    "eigenvalue_bounds",
    "pseudo_inverse",
    "coefficients",
]
Negative = Literal["retract", "clamp", "abs", "raise"]
Shift = float | Tensor
"""What is added to ``C``: a number, or a block vector for structures that support ``"tensor_shift"``."""


class Structure(ABC):
    """One family of matrices ``C``.

    Class attributes:
        OBSERVES: the channels it can be fed from, ``{"rows"}``, ``{"probe"}`` or both.
        SUPPORTS: the optional features it has; using another one raises when the optimizer is built.
        REDUCE: how observations of micro-batches merge: ``"sum"`` or ``"concat"`` (first dimension).
        DEGREE: observation leaf to its degree in the output gradients (0, 1 or 2).
        REFRESHED: state keys that :meth:`refresh` writes.
        GROWS: state key to the dimension whose length depends on the data; all other sizes follow from the block.
        ELEMENTWISE: whether any choice of a block's elements is a block of its own: all tensors of a state or an
            observation are block vectors (with batch dimensions in front) or single numbers, every method but
            :meth:`observe` works on them element by element, and :meth:`observe` reads no numbers of the state.
            Processes that hold shards of the parameters then hold these shards of the state.
        FORMS_ROWS: whether :meth:`observe` takes the squares of rows, which forms them where positions share weights.
        READ_BY_OBSERVE: state keys whose numbers :meth:`observe` reads; of the others it may read the shape. A process
            that owns the block sends them to all.
        EARLIER: state keys that :meth:`with_earlier` adds; empty for families that cannot have earlier data.
    """

    OBSERVES: ClassVar[frozenset[str]] = frozenset({"rows"})
    SUPPORTS: ClassVar[frozenset[str]] = frozenset()
    REDUCE: ClassVar[Literal["sum", "concat"]] = "sum"
    DEGREE: ClassVar[dict[str, int]] = {}
    REFRESHED: ClassVar[tuple[str, ...]] = ()
    GROWS: ClassVar[dict[str, int]] = {}
    ELEMENTWISE: ClassVar[bool] = False
    FORMS_ROWS: ClassVar[bool] = False
    READ_BY_OBSERVE: ClassVar[tuple[str, ...]] = ()
    EARLIER: ClassVar[tuple[str, ...]] = ()

    @property
    def reads(self) -> frozenset[str]:
        """What it reads of the rows of a layer: ``"inputs"``, ``"gradients"`` and, for few, ``"outputs"``."""
        return frozenset({"inputs", "gradients"})

    @abstractmethod
    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """The state of ``C_0 = initial * I`` for blocks of ``shape = (*lead, d_out, d_in)``; ``initial >= 0``."""

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """Un-normalised sums over the rows of one batch; the collector divides by counts and scales."""
        raise UnsupportedObservationError(f"{type(self).__name__} cannot be fed with rows")

    def observe_probe(self, state: State, probe: Tensor, response: Tensor) -> Observation:
        """Evidence from a pair with ``E[probe response^T] = H``; both are block vectors."""
        raise UnsupportedObservationError(f"{type(self).__name__} cannot be fed with probes")

    def plain_diagonal(self, state: State, shift: Shift) -> Tensor | None:
        """``c`` where ``C = diag(c)`` and the kernels in C can draw from ``C + shift I``; else ``None``."""
        return None

    def observe_displacement(
        self, state: State, displacement: Tensor, response: Tensor, *, shift: Shift, ess: float
    ) -> Observation:
        """Evidence from a weight sample: the probe ``ess (C + shift I) displacement`` and its response.

        The displacement is used up: its memory may hold the result. That of the response must not.
        """
        probe = self.apply(state, displacement, shift).mul_(ess)
        return self.observe_probe(state, probe, response)

    @abstractmethod
    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """``C <- decay * C + weight * C_hat``, or the structure's own law. Returns a new state dictionary."""

    def refresh(self, state: State) -> State:
        """The expensive factorisation, run on a schedule. Structures without one return the state unchanged."""
        return state

    @abstractmethod
    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """``(C^exponent + shift I)^-1 v``."""

    def pseudo_solve(self, state: State, v: Tensor, cut: float, *, exponent: float = 1.0) -> Tensor:
        """``C^-exponent v`` on the eigenvectors whose eigenvalue is at least ``cut > 0``, zero on the others."""
        raise UnsupportedObservationError(
            f"{type(self).__name__} has no pseudo-inverse; use a structure whose SUPPORTS contains 'pseudo_inverse'"
        )

    @abstractmethod
    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(C + shift I) v``, in memory of its own: the caller may change it."""

    @abstractmethod
    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """``S noise``, linear in the noise, with ``S S^T = (C + shift I)^-1`` and ``S`` continuous in ``C``; in memory
        of its own."""

    def displace(self, state: State, noise: Tensor, shift: Shift, ess: float) -> Tensor:
        """``(ess (C + shift I))^(-1/2) noise``, see :meth:`sample`: a draw from the posterior minus its mean."""
        return self.sample(state, noise, shift).mul_(ess**-0.5)

    @abstractmethod
    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``log det (C + shift I)`` of the whole block, a scalar."""

    @abstractmethod
    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """``diag((C + shift I)^-1)`` as a block vector."""

    def input_variance(self, state: State, shape: Shape, a: Tensor, shift: Shift, *, diagonal: bool = False) -> Tensor:
        """``(I (x) a)^T (C + shift I)^-1 (I (x) a)``: variances of ``W a`` for a matrix ``W`` of that covariance.

        Args:
            state: of a block without leading dimensions.
            shape: ``(d_out, d_in)``.
            a: ``(B, d_in)``.
            shift: as everywhere.
            diagonal: only the variance of each output.

        Returns:
            ``(B, d_out, d_out)``, or ``(B, d_out)``.
        """
        columns = []
        for k in range(shape[0]):
            v = a.new_zeros(len(a), *shape)
            v[:, k] = a
            solved = self.solve(state, v, shift)
            columns.append((solved[:, k] * a).sum(-1) if diagonal else (solved @ a.unsqueeze(-1)).squeeze(-1))
        return torch.stack(columns, -1)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """Scalars ``(low, high)`` with every eigenvalue of ``C (+) shift`` between them; attained unless stated."""
        raise UnsupportedObservationError(f"{type(self).__name__} does not know the eigenvalues of its curvature")

    def coefficients(self, state: State, shift: float, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Numbers ``c (n,)``, one for each of the ``n`` rows held, and the rows' places in the data set.

        ``shift (C + shift I)^-1 (J^T 1 + prior) = J^T c + prior`` for the rows ``J`` as they are held. A place is -1 if
        it is not known.
        """
        raise UnsupportedObservationError(f"{type(self).__name__} holds no rows that could have coefficients")

    def combine(self, state: State, c: Tensor) -> Tensor:
        """``J^T c`` of the rows held, as a block vector."""
        raise UnsupportedObservationError(f"{type(self).__name__} holds no rows to combine")

    @abstractmethod
    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """The meaning of ``C (+) shift``: ``(D, D)`` in the row-major order of the block ``(*lead, d_out, d_in)``."""

    def part(self, state: State, rows: int, source: torch.Generator) -> tuple[State, float]:
        """The state of a random part of the evidence, ``rows`` rows without replacement, whose expectation is ``C``.

        Also the factor on the rows' evidence: no eigenvalue of a part is larger than this factor times ``C``'s largest.
        """
        raise UnsupportedObservationError(
            f"{type(self).__name__} keeps no rows to draw from; use Gram, or all of the curvature (rows=None)"
        )

    def _check_option(self, field: str, value: object, allowed: tuple[object, ...]) -> None:
        """Raise ``ValueError`` if a configuration field holds none of its allowed values."""
        if value not in allowed:
            choices = ", ".join(repr(choice) for choice in allowed)
            raise ValueError(f"{type(self).__name__}: {field}={value!r} is unknown; allowed: {choices}")

    def _only_linear(self, exponent: float) -> None:
        """Raise if a root of ``C`` is asked for and the structure has none."""
        if exponent != 1.0:
            raise UnsupportedObservationError(
                f"{type(self).__name__} has no solve with exponent={exponent}; use exponent=1, "
                "or a structure whose SUPPORTS contains 'exponent'"
            )

    def _scalar_shift(self, shift: Shift) -> float:
        """The shift as a number; raises if it is a tensor of several numbers."""
        if isinstance(shift, Tensor):
            if shift.numel() != 1:
                raise UnsupportedObservationError(
                    f"{type(self).__name__} adds one number to C, got a shift of shape {tuple(shift.shape)}; "
                    "use a structure whose SUPPORTS contains 'tensor_shift'"
                )
            return float(shift)
        return shift

    def with_earlier(self, state: State, other: State, factor: float) -> State:
        """The state with earlier data, whose curvature ``E = factor C_other`` comes to everything that is observed.

        ``C`` is then the average of the evidence plus ``E``, and starts as what it was plus ``E``.

        Args:
            state: of this structure, without earlier data.
            other: a state of the same structure, of a block of the same shape.
            factor: >= 0.
        """
        raise UnsupportedObservationError(
            f"{type(self).__name__} cannot start from the posterior of earlier data; use Diagonal, Dense, Kronecker, "
            "EigenKronecker or DiagonalLowRank"
        )

    def earlier_product(self, state: State, v: Tensor) -> Tensor:
        """``E v`` with the curvature of the earlier data; zero without them."""
        return torch.zeros_like(v)

    def exactly_damped(self) -> Structure:
        """The structure that adds a shift to ``C`` as it is; factored damping only stands for that sum."""
        return self

    def knows_earlier(self, state: State) -> bool:
        """Whether the curvature of the earlier data in a state of :meth:`with_earlier` is more than zero."""
        return any(bool(state[key].any()) for key in self.EARLIER)

    def with_phase(self, state: State, *, critical: bool) -> State:
        """The state that knows whether training is in a critical phase, for structures that then measure another way.

        Most do not, and return the state as it is.
        """
        return state

    def fits(self, shape: Shape) -> bool:
        """Whether a block of this shape is affordable; if not, the optimizer uses its stated fallback structure."""
        return True

    def restriction(self, shape: Shape) -> str:
        """What a block is denied because of its size, and the option that grants it; ``""`` if nothing."""
        return ""

    def bytes_per_block(self, shape: Shape) -> int:
        """Memory of the state in float32, for reports."""
        state = self.init(shape, initial=0.0, dtype=torch.float32, device="meta")
        return sum(4 * math.prod(tensor.shape) for tensor in state.values())
