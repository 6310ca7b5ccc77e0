"""A metric of a layer's inputs alone: one for all outputs of a layer, or one for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.linalg.cholesky import cholesky
from vogn.linalg.eigh import eigh
from vogn.linalg.factors import Sharing, count_inputs, input_factor
from vogn.linalg.roots import denman_beavers, nystrom_columns
from vogn.linalg.rows import AnyRows, IndexedRows, Rows
from vogn.linalg.sides import identity, is_diagonal
from vogn.linalg.thin_sides import Side, decompose, diagonal, eigenvalues, multiply
from vogn.structures.base import Shift, Structure
from vogn.structures.evidence import blend, require_positive_without_shift
from vogn.structures.kronecker import diagonal_sides, mean_input
from vogn.types import Observation, Shape, State

_REMEDY = "set weight_decay, damping or initial_curvature above 0, or choose root='eigh'"


@dataclass(frozen=True)
class LocalFisher(Structure):
    """``C = I_out (x) M`` with the second moment ``M (i, i)`` of a layer's inputs; or one ``M_j`` per output.

    No gradient and no label takes part: the statistic ``"inputs"`` is enough. ``scope="unit"`` weighs the inputs of
    output ``j`` with its pseudo-gradient ``phi'(y_j)``, the slope of a softplus at the unit's output ``y_j``:
    ``M_j = E[sigmoid(y_j)^2 x x^T]``, a block-diagonal ``C``. Elementwise parameters (``d_in = 1``) whose outputs are
    not known have the weight 1, hence ``C = I``.

    :meth:`update` moves ``M``; every other method reads the metric of the last :meth:`refresh`. In the coordinates
    ``W' = W M^(1/2)`` a step ``W' - lr dL/dW'`` is the step ``W - lr dL/dW M^-1``, which is what :meth:`solve` gives.

    Args:
        scope: ``"layer"`` or ``"unit"``.
        root: how roots are taken. ``"eigh"``: an eigendecomposition per refresh, which serves any shift.
            ``"nystrom"``: on the best ``columns`` of ``M`` chosen by pivots, through a small eigenproblem; the trace of
            what they leave is spread evenly across them, so ``C`` is another matrix, and :meth:`to_dense` says so.
            ``"denman_beavers"``: the iteration for each sample, Cholesky for the rest; it loses half of the digits that
            the condition number costs and raises beyond ``1e12``.
        columns: of ``root="nystrom"``, at least 1.
        sharing: how positions enter: ``"expand"`` (as further inputs) or ``"reduce"`` (averaged inputs);
            ``scope="unit"`` has ``"expand"`` only.
        max_dim: largest ``M`` of ``scope="layer"`` that is more than its diagonal, >= 0.
        max_elements: ``scope="unit"`` stores ``o i^2`` numbers, and is refused beyond this limit (the block gets the
            optimizer's fallback).

    Raises:
        ValueError: if an option is out of range.

    Source: Liu, Boumaraf, Li, Lin, Liu, Niu, Werghi 2024, "Reconstructing Deep Neural Networks" (the layer's metric,
    Nystrom and Denman-Beavers roots); Sun, Nielsen 2017, "Relative Fisher Information" (the unit's metric).
    """

    scope: Literal["layer", "unit"] = "layer"
    root: Literal["eigh", "nystrom", "denman_beavers"] = "eigh"
    columns: int = 64
    sharing: Sharing = "expand"
    max_dim: int = 8192
    max_elements: int = 2**22

    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "apply", "sample", "logdet", "inverse_diagonal", "eigenvalue_bounds"}
    )
    DEGREE: ClassVar[dict[str, int]] = {"M": 0, "positions": 0}
    REFRESHED: ClassVar[tuple[str, ...]] = ("F", "x", "rest")

    def __post_init__(self) -> None:
        self._check_option("scope", self.scope, ("layer", "unit"))
        self._check_option("root", self.root, ("eigh", "nystrom", "denman_beavers"))
        self._check_option("sharing", self.sharing, ("expand", "reduce") if self.scope == "layer" else ("expand",))
        for field, value, least in (("columns", self.columns, 1), ("max_dim", self.max_dim, 0)):
            if value < least:
                raise ValueError(f"LocalFisher: {field}={value} must be at least {least}")

    @property
    def reads(self) -> frozenset[str]:
        """See :attr:`Structure.reads`."""
        return frozenset({"inputs"} if self.scope == "layer" else {"inputs", "outputs"})

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """``M = initial I``; an empty tensor remembers the block shape."""
        *lead, o, i = shape
        where = (*lead, o) if self.scope == "unit" else tuple(lead)
        flat = self.scope == "layer" and i > self.max_dim
        kept = 0 if flat and i > 1 else min(i, self.columns) if self.root == "nystrom" else i
        return {
            "template": torch.empty((0, *shape), dtype=dtype, device=device),
            "M": identity(where, i, diagonal=flat, dtype=dtype, device=device, scale=initial),
            "F": torch.eye(i, kept, dtype=dtype, device=device).repeat(*where, 1, 1) * self._scale_of(initial, kept),
            "x": torch.full((*where, kept), initial, dtype=dtype, device=device),
            "rest": torch.full((*where, 1 if kept else i), initial, dtype=dtype, device=device),
        }

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The sum of (weighted) input second moments and the number of inputs."""
        if self.scope == "layer":
            inputs = input_factor(rows, self.sharing, is_diagonal(state["M"]))
            assert isinstance(rows, Rows | IndexedRows)
            return {"M": inputs, "positions": count_inputs(rows, self.sharing)}
        moments = unit_moments(rows)
        assert isinstance(rows, Rows | IndexedRows)
        positions = count_inputs(rows, "expand").unsqueeze(-1)
        return {"M": moments, "positions": positions.expand(moments.shape[:-2]).clone()}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """The average of ``M``."""
        return state | {"M": blend(state["M"], mean_input(observation, "M"), decay, weight)}

    def refresh(self, state: State) -> State:
        """The metric that the other methods read."""
        m = state["M"]
        if is_diagonal(m):
            return state | {"rest": m.squeeze(-2).clamp_min(0.0)}
        if self.root == "denman_beavers":
            return state | {"F": m.clone()}
        if self.root == "eigh":
            values, vectors = eigh(m)
            return state | {"F": vectors, "x": values}
        columns, left = nystrom_columns(m, state["x"].shape[-1])
        side = decompose(columns, torch.zeros_like(state["rest"]))
        across = left.sum(-1, keepdim=True) / max(1, side.size - side.values.shape[-1])
        return state | {"F": side.basis, "x": side.values, "rest": across}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """``V (M + shift I)^-1``."""
        self._only_linear(exponent)
        if self._iterates(state):
            return self._with_rows(v, lambda u: torch.cholesky_solve(u.mT, self._cholesky(state, shift)).mT)
        return self._multiply(state, v, shift, torch.reciprocal)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``V (M + shift I)``."""
        shift = self._scalar_shift(shift)
        if self._iterates(state):
            return self._with_rows(v, lambda u: u @ state["F"]) + shift * v
        side = self._side(state).plus(shift)
        return self._with_rows(v, lambda u: multiply(u, side, lambda x: x))

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """``E (M + shift I)^(-1/2)``, the symmetric root."""
        if self._iterates(state):
            _, root = denman_beavers(self._shifted(state, shift), remedy=_REMEDY)
            return self._with_rows(noise, lambda u: u @ root)
        return self._multiply(state, noise, shift, torch.rsqrt)

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """Sum of logarithms of the eigenvalues, once for every output that shares them."""
        copies = 1 if self.scope == "unit" else state["template"].shape[-2]
        if self._iterates(state):
            return 2.0 * copies * self._cholesky(state, shift).diagonal(dim1=-2, dim2=-1).log().sum()
        total = state["x"].new_zeros(())
        for values, times in eigenvalues(*self._function(state, shift, torch.log)):
            total = total + copies * times * values.sum()
        return total

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """The diagonal of ``(M + shift I)^-1``, repeated for every output that shares it."""
        if self._iterates(state):
            eye = torch.eye(state["F"].shape[-1], dtype=state["F"].dtype, device=state["F"].device)
            half = torch.linalg.solve_triangular(self._cholesky(state, shift), eye, upper=False)
            values = half.square().sum(-2)
        else:
            values = diagonal(*self._function(state, shift, torch.reciprocal))
        shape = tuple(state["template"].shape[1:])
        return values if self.scope == "unit" else values.unsqueeze(-2).expand(shape).clone()

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues."""
        shift = self._scalar_shift(shift)
        if self._iterates(state):
            values = torch.linalg.eigvalsh(state["F"]) + shift
            return values.min(), values.max()
        parts = [values for values, _ in eigenvalues(self._side(state).plus(shift), lambda x: x)]
        return torch.stack([part.min() for part in parts]).min(), torch.stack([part.max() for part in parts]).max()

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``I (x) M + shift I`` or the blocks ``M_j + shift I``, with the metric of the last refresh."""
        metric = state["F"] if self._iterates(state) else self._side(state).dense()
        o, i = state["template"].shape[-2:]
        copies = 1 if self.scope == "unit" else o
        dense = torch.block_diag(*(one for one in metric.reshape(-1, i, i) for _ in range(copies)))
        dense.diagonal().add_(self._scalar_shift(shift))
        return dense

    def fits(self, shape: Shape) -> bool:
        """Whether the units' metrics are within ``max_elements``; a layer's metric always fits."""
        *lead, o, i = shape
        return self.scope == "layer" or torch.Size((*lead, o, i, i)).numel() <= self.max_elements

    def restriction(self, shape: Shape) -> str:
        """Names a metric that is too large for more than its diagonal."""
        if self.scope == "unit":
            return ""
        return diagonal_sides((*shape[:-2], 1, shape[-1]), max(1, self.max_dim), type(self).__name__)

    def _scale_of(self, initial: float, kept: int) -> float:
        """``F`` is a basis, or the metric itself for ``"denman_beavers"``."""
        return initial if self.root == "denman_beavers" and kept else 1.0

    def _iterates(self, state: State) -> bool:
        return self.root == "denman_beavers" and state["F"].shape[-1] > 0

    def _side(self, state: State) -> Side:
        return Side(state["F"], state["x"], state["rest"])

    def _function(
        self, state: State, shift: Shift, function: Callable[[Tensor], Tensor]
    ) -> tuple[Side, Callable[[Tensor], Tensor]]:
        """The shifted side, and the function behind a check of its eigenvalues."""
        shift = self._scalar_shift(shift)
        return self._side(state).plus(shift), lambda x: function(require_positive_without_shift(x, shift))

    def _multiply(self, state: State, v: Tensor, shift: Shift, function: Callable[[Tensor], Tensor]) -> Tensor:
        side, checked = self._function(state, shift, function)
        return self._with_rows(v, lambda u: multiply(u, side, checked))

    def _shifted(self, state: State, shift: Shift) -> Tensor:
        shifted = state["F"].clone()
        shifted.diagonal(dim1=-2, dim2=-1).add_(self._scalar_shift(shift))
        return shifted

    def _cholesky(self, state: State, shift: Shift) -> Tensor:
        return cholesky(self._shifted(state, shift), remedy=_REMEDY, rescue=self._scalar_shift(shift) > 0)

    def _with_rows(self, v: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        """A function of rows ``(*, m, i)`` beside their metrics ``(*, i, i)``: one row per unit, or all of a layer."""
        return function(v.unsqueeze(-2)).squeeze(-2) if self.scope == "unit" else function(v)


def unit_moments(rows: AnyRows) -> Tensor:
    """``sum_{n,t} sigmoid(y[n, t, j])^2 a[n, t] a[n, t]^T`` for every output ``j``, ``(*lead, o, i, i)``.

    Raises:
        UnsupportedObservationError: for rows without inputs or outputs of one layer.
    """
    if not isinstance(rows, Rows | IndexedRows):
        input_factor(rows, "expand")  # raises
        raise AssertionError
    a, outputs = rows.a, rows.outputs
    if outputs is None and a.shape[-1] > 1:
        raise UnsupportedObservationError(
            "LocalFisher(scope='unit') reads a layer's outputs, which a torch.compile'd model or a layer that shares "
            "its parameter with layers of another kind does not give; use scope='layer'"
        )
    kept = a if rows.mask is None else a * rows.mask.to(a.dtype).unsqueeze(-1)
    if outputs is None:
        moment = (kept.flatten(-3, -2).mT @ a.flatten(-3, -2)).unsqueeze(-3)
        return moment.expand(*moment.shape[:-3], rows.shape[-2], *moment.shape[-2:]).clone()
    weights = outputs.to(a.dtype).sigmoid().square().flatten(-3, -2)
    kept, a = kept.flatten(-3, -2), a.flatten(-3, -2)
    return torch.stack([(kept * weights[..., j : j + 1]).mT @ a for j in range(weights.shape[-1])], -3)
