"""A Gaussian posterior over five tensors whose dense covariance is written down by hand."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from vogn.linalg.layout import MatrixLayout, StackLayout
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.structures.base import Structure


@dataclass(frozen=True)
class Whole(Structure):
    """Dense curvature ``{"C": (D, D)}`` of a block of the given shape, as plain as can be."""

    shape: tuple[int, ...]
    SUPPORTS: ClassVar[frozenset[str]] = frozenset({"shift", "apply", "sample", "logdet", "inverse_diagonal"})

    def init(self, shape, *, initial, dtype, device):
        size = torch.Size(shape).numel()
        return {"C": initial * torch.eye(size, dtype=dtype, device=device)}

    def update(self, state, observation, *, decay, weight, shift):
        raise NotImplementedError

    def to_dense(self, state, shift=0.0):
        return state["C"] + shift * torch.eye(len(state["C"]), dtype=state["C"].dtype)

    def _times(self, matrix, v):
        size = len(matrix)
        return (v.reshape(-1, size) @ matrix.T).reshape(v.shape)

    def solve(self, state, v, shift, *, exponent=1.0):
        return self._times(torch.linalg.inv(self.to_dense(state, shift)), v)

    def apply(self, state, v, shift):
        return self._times(self.to_dense(state, shift), v)

    def sample(self, state, noise, shift):
        return self._times(torch.linalg.cholesky(torch.linalg.inv(self.to_dense(state, shift))), noise)

    def logdet(self, state, shift):
        return torch.logdet(self.to_dense(state, shift))

    def inverse_diagonal(self, state, shift):
        return torch.linalg.inv(self.to_dense(state, shift)).diagonal().reshape(self.shape)


ESS = {"fc": 50.0, "norm": 20.0}
SHIFT = {"fc": 0.1, "norm": 0.3}
ORDER = [
    # block "fc": a 3 x 3 weight with its bias as the last input column, row by row
    *[
        (name, index)
        for o in range(3)
        for name, index in [*(("fc.weight", (o, i)) for i in range(3)), ("fc.bias", (o,))]
    ],
    # block "norm": scale and shift of each channel side by side
    *[(name, (c,)) for c in range(6) for name in ("norm.weight", "norm.bias")],
]


@dataclass
class Case:
    """The posterior and its dense twin."""

    posterior: GaussianPosterior
    means: dict[str, Tensor]
    curvature: dict[str, Tensor]

    def vector(self, params: dict[str, Tensor]) -> Tensor:
        """``(*batch, 24)`` in the order of ``ORDER``."""
        return torch.stack([params[name][(..., *index)] for name, index in ORDER], -1)

    def precision(self) -> Tensor:
        parts = [ESS[b] * (self.curvature[b] + SHIFT[b] * torch.eye(12, dtype=torch.float64)) for b in ("fc", "norm")]
        return torch.block_diag(*parts)

    def covariance(self) -> Tensor:
        return torch.linalg.inv(self.precision())

    def dense(self) -> torch.distributions.MultivariateNormal:
        return torch.distributions.MultivariateNormal(self.vector(self.means), precision_matrix=self.precision())


def spd(size: int, seed: int) -> Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.T / size


@pytest.fixture
def case() -> Case:
    source = torch.Generator().manual_seed(0)
    shapes = {"fc.weight": (3, 3), "fc.bias": (3,), "norm.weight": (6,), "norm.bias": (6,), "frozen.scale": (2,)}
    means = {name: torch.randn(shape, generator=source, dtype=torch.float64) for name, shape in shapes.items()}
    curvature = {"fc": spd(12, 1), "norm": spd(12, 2)}
    layouts = {
        "fc": MatrixLayout(("fc.weight", "fc.bias"), ((3, 3), (3,)), (3, 3)),
        "norm": StackLayout(("norm.weight", "norm.bias"), ((6,), (6,))),
    }
    blocks = [
        PosteriorBlock(name, layout, Whole(layout.block_shape), {"C": curvature[name]}, SHIFT[name], ESS[name])
        for name, layout in layouts.items()
    ]
    frozen = StackLayout(("frozen.scale",), ((2,),))
    blocks.append(PosteriorBlock("frozen", frozen, Whole((2, 1, 1)), {"C": torch.eye(2)}, 0.0, math.inf, sampled=False))
    posterior = GaussianPosterior(blocks, means, likelihood={"kind": "categorical"}, method="test")
    return Case(posterior, means, curvature)


@pytest.fixture
def whole() -> type[Whole]:
    return Whole
