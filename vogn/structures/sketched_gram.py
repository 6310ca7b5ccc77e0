"""Curvature in sample space whose inner products run over a random part of the coordinates (SENG)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.linalg import fewer_columns
from vogn.linalg.noise import generator
from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.structures.gram import Gram
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class SketchedGram(Structure):
    """``C = scale I + U U^T Pi``, ``Pi = (D / q) sum_{j in Omega} e_j e_j^T``: :class:`Gram`, sketched.

    The inverse needs ``U^T U`` and ``U^T v``; both are estimated from ``q`` of the ``D`` coordinates, each operand
    scaled by ``sqrt(D / q)``, so ``E[U^T Pi U] = U^T U`` and ``E[C] = scale I + U U^T``. The way back, ``U c``, is
    exact. A block with ``D <= q`` is not sketched: it is :class:`Gram`.

    ``U U^T Pi`` is not symmetric, so it is no curvature of a Gaussian: nothing can be sampled, and the features of
    Gaussians are refused. :class:`Gram` and :class:`SampledGram` can sample.

    ``Omega`` is drawn without replacement at every observation. The draw is a function of ``seed``, of the shape of the
    block and of the number of observations so far, which the state counts in ``draws``; blocks of the same shape share
    it.

    Args:
        coordinates: ``q``, at least 1; blocks up to this size are exact.
        window: rows that are held; see :class:`Gram`.
        seed: of the draws.

    Raises:
        ValueError: if ``coordinates`` or the window is not positive.

    The authors' code scales both operands by ``D / q``, which makes the estimate of ``U^T U`` too large by ``D / q``;
    its damping ``lambda`` corresponds to ``lambda q / D`` here. Its branch for large layers, which holds pairs of
    inputs and output gradients instead of ``U``, and whose way back is a product of sums, is not provided.

    Source: Yang, Xu, Wen, Chen, Xu (2020), "Sketchy Empirical Natural Gradient Methods for Deep Learning", section 3.
    """

    coordinates: int = 65536
    window: int = 256
    seed: int = 0

    SUPPORTS: ClassVar[frozenset[str]] = frozenset({"shift", "tensor_shift", "apply"})
    REDUCE: ClassVar[Literal["sum", "concat"]] = "concat"
    DEGREE: ClassVar[dict[str, int]] = {"J": 1}

    def __post_init__(self) -> None:
        if self.coordinates < 1:
            raise ValueError(f"SketchedGram: coordinates={self.coordinates} must be at least 1; use Gram for no sketch")
        self._gram()

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """No columns, nothing drawn."""
        size = math.prod(shape)
        kept = self.coordinates if size > self.coordinates else 0
        return self._gram().init(shape, initial=initial, dtype=dtype, device=device) | {
            "draws": torch.zeros((), dtype=torch.int64),
            "omega": torch.arange(kept, dtype=torch.int64, device=device),
        }

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The rows themselves, ``(K N, D)``."""
        return self._gram().observe(state, rows)

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """Weighted rows side by side, and new coordinates."""
        new = self._gram().update(state, observation, decay=decay, weight=weight, shift=shift)
        omega = state["omega"]
        if omega.numel():
            name, step = str(tuple(new["U"].shape[:-1])), int(state["draws"])
            source = generator(seed=self.seed, stream="sketch", step=step, sample=0, name=name)
            omega = torch.randperm(observation["J"].shape[1], generator=source)[: omega.numel()].to(omega.device)
        return new | {"omega": omega, "draws": state["draws"] + 1}

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """Woodbury's identity with one refinement."""
        self._only_linear(exponent)
        if not state["omega"].numel():
            return self._gram().solve(state, v, shift)
        d, u = self._gram().flat(state, shift)
        return fewer_columns.sketched_solve(d.flatten(), u, state["omega"], v.reshape(-1, len(u))).reshape(v.shape)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(scale + shift) v + U U^T Pi v``."""
        if not state["omega"].numel():
            return self._gram().apply(state, v, shift)
        d, u = self._gram().flat(state, shift)
        return fewer_columns.sketched_apply(d.flatten(), u, state["omega"], v.reshape(-1, len(u))).reshape(v.shape)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """Refused: the sketched matrix is not symmetric."""
        raise self._refusal("sample")

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """Refused: the sketched matrix is not symmetric."""
        raise self._refusal("logdet")

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """Refused: the sketched matrix is not symmetric."""
        raise self._refusal("inverse_diagonal")

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``diag(scale + shift) + U U^T Pi``; not symmetric where the block is sketched."""
        u = state["U"]
        size = math.prod(u.shape[:-1])
        eye = torch.eye(size, dtype=u.dtype, device=u.device)
        return self.apply(state, eye.reshape(-1, *u.shape[:-1]), shift).reshape(size, -1).T

    def _gram(self) -> Gram:
        return Gram(window=self.window)

    def _refusal(self, feature: str) -> UnsupportedObservationError:
        return UnsupportedObservationError(
            f"SketchedGram has no {feature}: a curvature sketched along its coordinates is not symmetric; use Gram (no "
            "sketch) or SampledGram (a sketch of the rows), or variational=False"
        )
