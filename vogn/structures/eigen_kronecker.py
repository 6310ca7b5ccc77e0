"""A free diagonal in a Kronecker eigenbasis (EKFAC, the basis of SOAP and EVON)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.linalg.factors import Sharing, contractions, kronecker_factors, rotated_squares
from vogn.linalg.rows import AnyRows
from vogn.linalg.sides import (
    carry_over,
    decompose,
    dense_from_basis,
    diagonal_from_basis,
    from_basis,
    identity,
    input_variance,
    is_diagonal,
    quotient_kernel,
    side,
    to_basis,
    trace,
    values_in_basis,
)
from vogn.structures.base import Negative, Shift, Structure
from vogn.structures.earlier import with_earlier
from vogn.structures.evidence import absorb, blend, require_positive_without_shift
from vogn.structures.kronecker import diagonal_sides, mean_input
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class EigenKronecker(Structure):
    """``C = (QS (x) QA) diag(s) (QS (x) QA)^T`` with eigenbases ``QA (i, i)``, ``QS (o, o)`` of two factors.

    Before the first :meth:`refresh` the basis is the identity. Where an observation holds both channels, rows move the
    factors of the basis and the probe is the evidence for ``s``.

    Args:
        basis: ``"kfac"``: second moments of layer inputs and output gradients. ``"contraction"``: ``sum J^T J`` and
            ``sum J J^T`` of the rows seen as matrices, which also takes the mini-batch gradient as one row.
        restart: ``True``: :meth:`refresh` restarts ``s`` at the product of the factors' eigenvalues (``"contraction"``
            divides it by the trace, so that it has the scale of ``C``). ``False``: ``s`` is carried over as the
            diagonal of the old ``C`` in the new basis, ``(QS'^T QS)^2 s (QA^T QA')^2``; the trace is unchanged.
        damping: ``"exact"``: ``C (+) shift = C + shift I``. ``"factored"``: the eigenvalue ``s_ij`` becomes
            ``s_ij + sqrt(shift / mean(s)) (mean_j s_ij + mean_i s_ij) + shift``. Where ``s`` is a product, after a
            restart, this is K-FAC's factored damping (:class:`vogn.structures.Kronecker`): directions with a large
            factor on one side only are damped more. :meth:`to_dense` says so.
        negative: what to do with negative evidence (probes), see :class:`vogn.structures.diagonal.Diagonal`.
        max_dim: largest factor that is kept as a matrix, >= 0. A larger one (a vocabulary) is a diagonal
            ``(*lead, 1, n)``, and that side of the basis stays with the axes; ``s`` is as free as before.
        basis_decay: weight of the old factors, in [0, 1]; ``None`` averages them like ``s``.
        sharing: with ``basis="kfac"``, how positions enter the factors of the basis: ``"expand"`` or ``"reduce"``, see
            :func:`vogn.linalg.factors.kronecker_factors`. Where a refresh restarts ``s``, it restarts at their product.

    Raises:
        ValueError: if an option is unknown.

    Source: George, Laurent, Bouthillier, Ballas, Vincent 2018, section 3; Vyas et al. 2024 (SOAP).
    """

    basis: Literal["kfac", "contraction"] = "kfac"
    restart: bool = True
    damping: Literal["exact", "factored"] = "exact"
    negative: Negative = "raise"
    max_dim: int = 8192
    basis_decay: float | None = None
    sharing: Sharing = "expand"

    OBSERVES: ClassVar[frozenset[str]] = frozenset({"rows", "probe"})
    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "apply", "sample", "logdet", "exponent", "inverse_diagonal", "eigenvalue_bounds"}
    )
    DEGREE: ClassVar[dict[str, int]] = {"inputs": 0, "positions": 0, "right": 2, "S": 2, "rows": 2, "probe": 1}
    REFRESHED: ClassVar[tuple[str, ...]] = ("QA", "QS", "s")
    READ_BY_OBSERVE: ClassVar[tuple[str, ...]] = ("QA", "QS")
    EARLIER: ClassVar[tuple[str, ...]] = ("earlier_s", "earlier_QS", "earlier_QA", "earlier_diagonal")

    def __post_init__(self) -> None:
        self._check_option("basis", self.basis, ("kfac", "contraction"))
        self._check_option("damping", self.damping, ("exact", "factored"))
        self._check_option("negative", self.negative, ("raise", "retract", "clamp", "abs"))
        self._check_option("sharing", self.sharing, ("expand", "reduce"))
        if self.max_dim < 0:
            raise ValueError(f"EigenKronecker: max_dim={self.max_dim} must be at least 0 (0: the axes on both sides)")
        if self.basis_decay is not None and not 0.0 <= self.basis_decay <= 1.0:
            raise ValueError(f"basis_decay={self.basis_decay} must lie in [0, 1], or be None")

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """``s = initial`` and the factors of ``initial * I``."""
        *lead, o, i = shape
        scale_a, scale_s = (initial**0.5, initial**0.5) if self.basis == "kfac" else (o * initial, i * initial)
        state: State = {}
        for size, factor, basis, start in ((i, "A", "QA", scale_a), (o, "S", "QS", scale_s)):
            diagonal = size > self.max_dim
            for key, scale in ((factor, start), (basis, 1.0)):
                state[key] = identity(tuple(lead), size, diagonal=diagonal, dtype=dtype, device=device, scale=scale)
        return state | {"s": torch.full(shape, initial, dtype=dtype, device=device)}

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """Factors of the basis, and the second moment of the rows in the present basis."""
        squares = rotated_squares(rows, state["QS"], state["QA"])
        diagonal = is_diagonal(state["S"]), is_diagonal(state["A"])
        if self.basis == "kfac":
            a, s, positions = kronecker_factors(rows, self.sharing, diagonal)
            return {"inputs": a, "positions": positions, "S": s, "rows": squares}
        a, s = contractions(rows, diagonal)
        return {"right": a, "S": s, "rows": squares}

    def observe_probe(self, state: State, probe: Tensor, response: Tensor) -> Observation:
        """The product of the coordinates of probe and response."""
        qs, qa = state["QS"], state["QA"]
        return {"probe": to_basis(probe, qs, qa).mul_(to_basis(response, qs, qa))}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """Averages of the factors and of ``s``; probes follow ``negative``."""
        new = dict(state)
        keep, take = (decay, weight) if self.basis_decay is None else (self.basis_decay, 1.0 - self.basis_decay)
        for key, leaf in (("A", "inputs"), ("A", "right"), ("S", "S")):
            if leaf in observation:
                seen = mean_input(observation, leaf) if leaf == "inputs" else observation[leaf]
                new[key] = blend(state[key], seen, keep, take)
        if "probe" in observation:
            h = with_earlier(observation["probe"], state, "earlier_diagonal")
            new["s"] = absorb(state["s"], h, decay=decay, weight=weight, shift=shift, negative=self.negative)
        else:
            new["s"] = blend(state["s"], with_earlier(observation["rows"], state, "earlier_diagonal"), decay, weight)
        return new

    def refresh(self, state: State) -> State:
        """New eigenbases; ``s`` restarts or is carried over. With earlier data, see :meth:`with_earlier`."""
        if "earlier_s" in state:
            return self._refresh_with_earlier(state)
        x, qa = decompose(state["A"])
        y, qs = decompose(state["S"])
        if self.restart:
            s = y.unsqueeze(-1) * x.unsqueeze(-2)
            if self.basis == "contraction":
                total = x.sum(-1)[..., None, None]
                s = torch.where(total > 0, s / total, 0.0)
        else:
            s = carry_over(state["s"], (state["QS"], state["QA"]), (qs, qa))
        return state | {"QA": qa, "QS": qs, "s": s}

    def with_earlier(self, state: State, other: State, factor: float) -> State:
        """See :meth:`Structure.with_earlier`; ``C`` has the diagonal of the sum in the basis of its partial traces.

        The partial traces of ``C + E`` over outputs and inputs are the factors of the basis, and in it the diagonal of
        ``E``, the matrix nearest to ``E`` there, is added: exact if earlier and later data have one eigenbasis.
        """
        earlier = {"earlier_s": factor * other["s"], "earlier_QS": other["QS"], "earlier_QA": other["QA"]}
        return self.refresh(state | earlier)

    def earlier_product(self, state: State, v: Tensor) -> Tensor:
        """``E v`` in the basis of the earlier data: exact."""
        if "earlier_s" not in state:
            return torch.zeros_like(v)
        basis = state["earlier_QS"], state["earlier_QA"]
        return from_basis(to_basis(v, *basis).mul_(state["earlier_s"]), *basis)

    def knows_earlier(self, state: State) -> bool:
        """See :meth:`Structure.knows_earlier`: a basis is never zero."""
        return bool(state["earlier_s"].any())

    def _refresh_with_earlier(self, state: State) -> State:
        values, old = state["earlier_s"], (state["earlier_QS"], state["earlier_QA"])
        s, a = state["S"], state["A"]
        if self.basis == "kfac":  # of the partial traces of S (x) A
            s, a = s * trace(a), a * trace(s)
        _, qa = decompose(a + side(values.sum(-2), old[1]))
        _, qs = decompose(s + side(values.sum(-1), old[0]))
        if self.restart:
            y, x = (values_in_basis(state[key], basis) for key, basis in (("S", qs), ("A", qa)))
            new = y.unsqueeze(-1) * x.unsqueeze(-2)
            if self.basis == "contraction":
                total = trace(state["A"])
                new = torch.where(total > 0, new / total, 0.0)
        else:
            new = state["s"] - state["earlier_diagonal"] if "earlier_diagonal" in state else state["s"]
            new = carry_over(new, (state["QS"], state["QA"]), (qs, qa))
        diagonal = carry_over(values, old, (qs, qa))
        return state | {"QA": qa, "QS": qs, "s": new + diagonal, "earlier_diagonal": diagonal}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Division in the basis; under a root negative ``s`` counts as zero, and the shift is added as it is."""
        if exponent == 1.0:
            kernel = quotient_kernel(v, state["QS"], state["QA"], state["s"])
            if kernel is not None and not isinstance(shift, Tensor) and shift > 0:
                return kernel(v, state["QS"], state["QA"], self._damped(state["s"], shift), shift)
            return self._scale(state, v, self._eigenvalues(state, shift).reciprocal_())
        values = state["s"].clamp_min(0.0).pow_(exponent) + self._scalar_shift(shift)
        return self._scale(state, v, require_positive_without_shift(values, shift).reciprocal_())

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """Multiplication in the basis."""
        return self._scale(state, v, self._shifted(state, shift))

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """The symmetric root, ``U f(U^T noise)``."""
        return self._scale(state, noise, self._eigenvalues(state, shift).rsqrt_())

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """The sum of the logarithms of the eigenvalues."""
        return self._eigenvalues(state, shift).log_().sum()

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """``QS^2 (1 / eigenvalues) (QA^2)^T``."""
        return diagonal_from_basis(self._eigenvalues(state, shift).reciprocal_(), state["QS"], state["QA"])

    def input_variance(self, state: State, shape: Shape, a: Tensor, shift: Shift, *, diagonal: bool = False) -> Tensor:
        """In the basis: squared coordinates of the input over the eigenvalues, then back to the outputs."""
        return input_variance(self._eigenvalues(state, shift).reciprocal(), state["QS"], state["QA"], a, diagonal)

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues."""
        values = self._eigenvalues(state, shift)
        return values.min(), values.max()

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``C`` with the damping of this configuration, block-diagonal over ``lead``."""
        return dense_from_basis(self._shifted(state, shift), state["QS"], state["QA"])

    def exactly_damped(self) -> Structure:
        """With ``damping="exact"``."""
        return replace(self, damping="exact")

    def restriction(self, shape: Shape) -> str:
        """Names the sides whose basis stays with the axes."""
        return diagonal_sides(shape, self.max_dim, type(self).__name__)

    def _damped(self, s: Tensor, shift: float) -> Tensor:
        """``s`` with all of its damping but the shift itself."""
        if self.damping == "exact" or not shift > 0:
            return s
        level = s.mean((-2, -1), keepdim=True)
        strength = torch.where(level > 0, shift**0.5 / level.sqrt(), 0.0)
        sides = s.mean(-1, keepdim=True).clamp_min(0.0), s.mean(-2, keepdim=True).clamp_min(0.0)
        return s + (strength * sides[0] + strength * sides[1])

    def _shifted(self, state: State, shift: Shift) -> Tensor:
        """The eigenvalues of ``C (+) shift``, a tensor of their own."""
        shift = self._scalar_shift(shift)
        return self._damped(state["s"], shift) + shift

    def _eigenvalues(self, state: State, shift: Shift) -> Tensor:
        return require_positive_without_shift(self._shifted(state, shift), shift)

    def _scale(self, state: State, v: Tensor, factor: Tensor) -> Tensor:
        return from_basis(to_basis(v, state["QS"], state["QA"]).mul_(factor), state["QS"], state["QA"])
