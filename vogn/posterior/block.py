"""One independent block of a Gaussian posterior: precision ``ess (C + shift I)``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vogn.errors import NotPositiveDefiniteError, UnsupportedObservationError, in_block
from vogn.kernels import native
from vogn.linalg.layout import Layout, columns, layout_from_dict
from vogn.linalg.noise import fill_normals, key
from vogn.structures import structure_from_dict, structure_to_dict
from vogn.structures.base import Structure
from vogn.types import State


@dataclass(frozen=True)
class PosteriorBlock:
    """A block of parameters with its curvature.

    Args:
        name: block name; names the noise stream and appears in messages.
        layout: how the block's parameters are packed.
        structure: matrix family of the curvature ``C`` (mean loss per example).
        state: the structure's state.
        shift: what is added to ``C``: the weight decay, >= 0. Never the damping.
        ess: effective sample size, > 0 and finite.
        sampled: ``False`` keeps the parameters at their mean (norm parameters): a point mass.

    Raises:
        ValueError: if ``ess`` or ``shift`` is out of range.
        UnsupportedObservationError: if the structure cannot sample.
        NotPositiveDefiniteError: if the shift is zero and the curvature alone has no inverse.
    """

    name: str
    layout: Layout
    structure: Structure
    state: State
    shift: float
    ess: float
    sampled: bool = True

    def __post_init__(self) -> None:
        if not self.sampled:
            return
        if not (self.ess > 0 and math.isfinite(self.ess)):
            raise ValueError(
                f"block {self.name!r}: a posterior needs a positive finite effective sample size, got ess={self.ess}; "
                "pass ess=len(train_set), or sampled=False for a point mass"
            )
        if not (self.shift >= 0 and math.isfinite(self.shift)):
            raise ValueError(f"block {self.name!r}: the shift must be a finite number >= 0, got {self.shift}")
        self._require("sample")
        if self.shift == 0:
            self._check_invertible()

    def to_dict(self) -> dict[str, Any]:
        """Plain description of all but the state's tensors; see :meth:`from_dict`."""
        return {
            "name": self.name,
            "layout": self.layout.to_dict(),
            "structure": structure_to_dict(self.structure),
            "state": list(self.state),
            "shift": float(self.shift),  # a tensor, where the evidence is differentiated
            "ess": float(self.ess),
            "sampled": self.sampled,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], state: State) -> PosteriorBlock:
        """The block with the description of :meth:`to_dict` and this state."""
        return cls(
            name=data["name"],
            layout=layout_from_dict(data["layout"]),
            structure=structure_from_dict(data["structure"]),
            state=state,
            shift=float(data["shift"]),
            ess=float(data["ess"]),
            sampled=bool(data["sampled"]),
        )

    def _require(self, feature: str) -> None:
        if feature not in self.structure.SUPPORTS:
            raise UnsupportedObservationError(
                f"block {self.name!r}: structure {type(self.structure).__name__} does not support {feature!r} "
                f"(it supports {sorted(self.structure.SUPPORTS)}); choose another structure for this block"
            )

    def _check_invertible(self) -> None:
        """Without a shift the curvature must be positive definite on its own."""
        if "inverse_diagonal" not in self.structure.SUPPORTS:
            return
        message = (
            f"block {self.name!r}: the weight decay is zero and the curvature is not positive definite, "
            "so there is no posterior; use weight_decay > 0, or observe curvature before asking for the posterior"
        )
        try:
            diagonal = self.structure.inverse_diagonal(self.state, 0.0)
        except (ArithmeticError, RuntimeError) as error:
            raise NotPositiveDefiniteError(message) from error
        if not bool(((diagonal > 0) & torch.isfinite(diagonal)).all()):
            raise NotPositiveDefiniteError(message)

    @property
    def numel(self) -> int:
        """Number of parameters ``D``."""
        return self.layout.numel

    def cast(self, dtype: torch.dtype, device: torch.device | str | None) -> PosteriorBlock:
        """A block with its own copy of the state: floating point tensors in ``dtype``, the others as they are."""
        state = {}
        for name, tensor in self.state.items():
            target = dtype if tensor.is_floating_point() else tensor.dtype
            state[name] = tensor.detach().to(device=device, dtype=target, copy=True).contiguous()
        return replace(self, state=state)

    def noise(self, n: int, *, seed: int, start: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal noise ``(n, *block_shape)`` of the draws ``start, ..., start + n - 1``."""
        room = torch.empty((n, *self.layout.block_shape), dtype=dtype, device=device)
        fill_normals(room, [self.numel] * n, self._keys(n, seed, start))
        return room

    def _keys(self, n: int, seed: int, start: int) -> list[int]:
        return [key(seed, "posterior", 0, k, self.name, 0) for k in range(start, start + n)]

    def drawn(self, means: Mapping[str, Tensor], n: int, *, seed: int, start: int) -> dict[str, Tensor] | None:
        """The weights of the draws with :meth:`noise`, ``{name: (n, *shape)}``, in one pass over the numbers; ``None``
        where :meth:`root` is to do it.

        Args:
            means: by parameter.
            n, seed, start: see :meth:`noise`.
        """
        curvature = self.structure.plain_diagonal(self.state, self.shift)
        mean = columns(self.layout, [means[name] for name in self.layout.names])
        if curvature is None or mean is None or not native.fit(*(x for x in mean if x is not None)):
            return None
        out = {name: means[name].new_empty((n, *means[name].shape)) for name in self.layout.names}
        for k, own in enumerate(self._keys(n, seed, start)):
            sample = columns(self.layout, [draws[k] for draws in out.values()])
            assert sample is not None  # as for the mean
            native.sample(mean, curvature, sample, seed=own, shift=self.shift, scale=self.ess**-0.5)
        return out

    def root(self, noise: Tensor) -> Tensor:
        """``S noise`` with ``S S^T = Sigma``, for block vectors ``(*batch, *block_shape)``."""
        with in_block(self.name):
            return self.structure.sample(self.state, noise, self.shift) / math.sqrt(self.ess)

    def variance(self) -> Tensor:
        """``diag(Sigma)`` as a block vector."""
        self._require("inverse_diagonal")
        with in_block(self.name):
            return self.structure.inverse_diagonal(self.state, self.shift) / self.ess

    def input_variance(self, a: Tensor, *, diagonal: bool = False) -> Tensor:
        """Covariance of ``W a`` for a block that is one matrix ``W``; see :meth:`Structure.input_variance`."""
        with in_block(self.name):
            shape = self.layout.block_shape
            return self.structure.input_variance(self.state, shape, a, self.shift, diagonal=diagonal) / self.ess

    def covariance_product(self, v: Tensor) -> Tensor:
        """``Sigma v`` for block vectors."""
        with in_block(self.name):
            return self.structure.solve(self.state, v, self.shift) / self.ess

    def precision_product(self, v: Tensor) -> Tensor:
        """``Lambda v`` for block vectors."""
        self._require("apply")
        with in_block(self.name):
            return self.ess * self.structure.apply(self.state, v, self.shift)

    def quadratic(self, v: Tensor) -> Tensor:
        """``v^T Lambda v`` for block vectors ``(*batch, *block_shape)``; returns ``batch``."""
        return (v * self.precision_product(v)).sum(tuple(range(-len(self.layout.block_shape), 0)))

    def logdet(self) -> Tensor:
        """``log det Lambda``, a scalar."""
        self._require("logdet")
        with in_block(self.name):
            return self.structure.logdet(self.state, self.shift) + self.numel * math.log(self.ess)

    def precision_matrix(self) -> Tensor:
        """``Lambda``, ``(D, D)`` in the row-major order of the block. For tests and small models."""
        return self.ess * self.structure.to_dense(self.state, self.shift)


def exactly_damped(block: PosteriorBlock) -> PosteriorBlock:
    """The block whose prior is added to the curvature as it is: factored damping only stands for that sum."""
    return replace(block, structure=block.structure.exactly_damped())
