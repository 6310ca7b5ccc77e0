"""The identity: a first-order method with the interface of a curvature."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vogn.linalg.rows import AnyRows
from vogn.structures.base import Shift, Structure
from vogn.types import Observation, Shape, State


@dataclass(frozen=True)
class Identity(Structure):
    """``C = I`` whatever is observed: gradient descent, or Langevin-like noise of one width in variational mode.

    ``initial``, ``decay`` and ``weight`` are ignored, and so is the exponent of a solve. The state is an empty tensor
    that remembers the block shape, dtype and device; an observation counts examples and is not used.
    """

    OBSERVES: ClassVar[frozenset[str]] = frozenset({"rows", "probe"})
    SUPPORTS: ClassVar[frozenset[str]] = frozenset(
        {"shift", "tensor_shift", "apply", "sample", "logdet", "exponent", "inverse_diagonal", "eigenvalue_bounds"}
    )
    DEGREE: ClassVar[dict[str, int]] = {"count": 0}

    @property
    def reads(self) -> frozenset[str]:
        """Nothing."""
        return frozenset()

    def init(self, shape: Shape, *, initial: float, dtype: torch.dtype, device: torch.device | str) -> State:
        """An empty tensor ``(0, *lead, o, i)``."""
        return {"template": torch.empty((0, *shape), dtype=dtype, device=device)}

    def observe(self, state: State, rows: AnyRows) -> Observation:
        """The number of examples."""
        return {"count": state["template"].new_full((), float(rows.count))}

    def observe_probe(self, state: State, probe: Tensor, response: Tensor) -> Observation:
        """One."""
        return {"count": state["template"].new_ones(())}

    def update(self, state: State, observation: Observation, *, decay: float, weight: float, shift: Shift) -> State:
        """Nothing changes."""
        return dict(state)

    def solve(self, state: State, v: Tensor, shift: Shift, *, exponent: float = 1.0) -> Tensor:
        """``v / (1 + shift)``."""
        return v / (1.0 + shift)

    def apply(self, state: State, v: Tensor, shift: Shift) -> Tensor:
        """``(1 + shift) v``."""
        return v * (1.0 + shift)

    def sample(self, state: State, noise: Tensor, shift: Shift) -> Tensor:
        """``noise / sqrt(1 + shift)``."""
        return noise * (1.0 + shift) ** -0.5

    def logdet(self, state: State, shift: Shift) -> Tensor:
        """``D log(1 + shift)``."""
        return self._diagonal(state, shift).log().sum()

    def inverse_diagonal(self, state: State, shift: Shift) -> Tensor:
        """``1 / (1 + shift)`` everywhere."""
        return self._diagonal(state, shift).reciprocal()

    def eigenvalue_bounds(self, state: State, shift: Shift) -> tuple[Tensor, Tensor]:
        """The extreme eigenvalues."""
        values = self._diagonal(state, shift)
        return values.min(), values.max()

    def to_dense(self, state: State, shift: Shift = 0.0) -> Tensor:
        """``(1 + shift) I``."""
        return self._diagonal(state, shift).flatten().diag()

    def _diagonal(self, state: State, shift: Shift) -> Tensor:
        template = state["template"]
        ones = template.new_ones(tuple(template.shape[1:]))
        return ones + shift
