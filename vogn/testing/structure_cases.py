"""Inputs, states and comparisons of the conformance suite of structures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.linalg.rows import AnyRows, Rows
from vogn.structures import Structure
from vogn.types import Observation, Shape, State


def random_rows(shape: Shape, *, seed: int, examples: int = 6, columns: int = 1, positions: int = 1) -> Rows:
    """Rows with standard normal inputs, outputs and output gradients for blocks ``(*lead, d_out, d_in)``."""
    source = torch.Generator().manual_seed(seed)
    *lead, d_out, d_in = shape
    a = torch.randn((*lead, examples, positions, d_in), generator=source, dtype=torch.float64)
    g = torch.randn((*lead, columns, examples, positions, d_out), generator=source, dtype=torch.float64)
    outputs = torch.randn((*lead, examples, positions, d_out), generator=source, dtype=torch.float64)
    return Rows(a, g, outputs=outputs)


def some_examples(rows: Rows, part: slice) -> Rows:
    """The rows of some of the examples."""
    outputs = None if rows.outputs is None else rows.outputs[..., part, :, :]
    return Rows(rows.a[..., part, :, :], rows.g[..., part, :, :], outputs=outputs)


def normalised(structure: Structure, observation: Observation, count: int) -> Observation:
    """An observation of ``count`` examples as the optimizer hands it to ``update``."""
    if structure.REDUCE == "concat":
        return {key: leaf / math.sqrt(count) ** structure.DEGREE[key] for key, leaf in observation.items()}
    return {key: leaf / count for key, leaf in observation.items()}


def merged(structure: Structure, first: Observation, second: Observation) -> Observation:
    """Two observations as one."""
    if structure.REDUCE == "concat":
        return {key: torch.cat([first[key], second[key]]) for key in first}
    return {key: first[key] + second[key] for key in first}


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Largest error relative to the largest number expected (or to 1e-12 if all are smaller)."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    scale = max(float(expected.abs().max()), 1e-12) if expected.numel() else 1.0
    error = float((actual - expected).abs().max()) / scale if expected.numel() else 0.0
    assert error < tolerance, f"{name}: relative error {error:.3g}, allowed {tolerance:.3g}"


def raises(call: Callable[[], object]) -> bool:
    """Whether the call is refused as unsupported."""
    try:
        call()
    except UnsupportedObservationError:
        return True
    return False


class StructureCases:
    """The structure under test and states of it.

    Class attributes:
        structure: the configuration under test.
        shapes: block shapes, with and without leading dimensions.
        shift: a shift that makes every state well conditioned.
        tiny_shift: a shift that makes rank-deficient states ill conditioned.
    """

    structure: ClassVar[Structure]
    shapes: ClassVar[tuple[Shape, ...]] = ((3, 4), (5, 1), (1, 1), (2, 3, 2), (4, 2, 1))
    shift: ClassVar[float] = 0.1
    tiny_shift: ClassVar[float] = 1e-9

    def rows(self, shape: Shape, *, seed: int, examples: int = 6, columns: int = 1) -> AnyRows:
        """Rows that this structure reads; override it for structures that read only some kinds."""
        return random_rows(shape, seed=seed, examples=examples, columns=columns)

    def observation(self, state: State, shape: Shape, *, seed: int, examples: int = 6) -> Observation:
        """A normalised observation: rows, or else probes along all axes, which give a Hessian exactly."""
        if "rows" in self.structure.OBSERVES:
            rows = self.rows(shape, seed=seed, examples=examples)
            return normalised(self.structure, self.structure.observe(state, rows), examples)
        return self.probed(state, shape, seed=seed, examples=examples)

    def probed(self, state: State, shape: Shape, *, seed: int, examples: int = 6) -> Observation:
        """Evidence of a positive semi-definite Hessian, one probe per axis."""
        size = math.prod(shape)
        root = random_rows(shape, seed=seed, examples=examples).dense().reshape(-1, size)
        hessian = root.T @ root / examples
        total: Observation = {}
        for probe, response in zip(torch.eye(size, dtype=torch.float64), hessian, strict=True):
            leaf = self.structure.observe_probe(state, probe.reshape(shape), response.reshape(shape))
            total = merged(self.structure, total, leaf) if total else leaf
        return total

    def fresh(self, shape: Shape, initial: float = 0.5) -> State:
        """A state before any evidence."""
        return self.structure.init(shape, initial=initial, dtype=torch.float64, device="cpu")

    def trained(self, shape: Shape, *, initial: float = 0.5, examples: int = 6, steps: int = 3) -> State:
        """A state after some updates, the first of them refreshed."""
        state = self.fresh(shape, initial)
        for seed in range(steps):
            seen = self.observation(state, shape, seed=seed, examples=examples)
            state = self.structure.update(state, seen, decay=0.7, weight=0.3, shift=self.shift)
            if seed == 0:
                state = self.structure.refresh(state)
        return state

    def states(self) -> Iterator[tuple[str, Shape, State]]:
        """Named states of every shape."""
        structure = self.structure
        for shape in self.shapes:
            assert structure.fits(shape)
            deficient = structure.refresh(self.trained(shape, initial=0.0, examples=2, steps=1))
            yield f"fresh {shape}", shape, self.fresh(shape)
            yield f"refreshed fresh {shape}", shape, structure.refresh(self.fresh(shape))
            yield f"trained {shape}", shape, self.trained(shape)
            yield f"refreshed {shape}", shape, structure.refresh(self.trained(shape))
            yield f"rank deficient {shape}", shape, deficient
            if "probe" in structure.OBSERVES:
                state = self.fresh(shape)
                seen = self.probed(state, shape, seed=1)
                yield f"probed {shape}", shape, structure.update(state, seen, decay=0.7, weight=0.3, shift=self.shift)

    def shifts(self, shape: Shape) -> Iterator[float | Tensor]:
        """Shifts to test: moderate, tiny, and a tensor where it is supported."""
        yield self.shift
        yield self.tiny_shift
        if "tensor_shift" in self.structure.SUPPORTS:
            source = torch.Generator().manual_seed(1)
            yield 0.1 + torch.rand(shape, generator=source, dtype=torch.float64)

    def systems(self) -> Iterator[tuple[str, Shape, State, float | Tensor, Tensor, float]]:
        """Named (shape, state, shift, dense matrix, condition number)."""
        for name, shape, state in self.states():
            for shift in self.shifts(shape):
                dense = self.structure.to_dense(state, shift)
                assert dense.shape == (math.prod(shape),) * 2, f"{name}: to_dense is {tuple(dense.shape)}"
                assert torch.allclose(dense, dense.T, rtol=1e-12, atol=1e-13), f"{name}: to_dense is not symmetric"
                spectrum = torch.linalg.eigvalsh(dense)
                assert spectrum[0] > 0, f"{name}: to_dense plus shift is not positive definite"
                label = f"{name}, shift {shift if isinstance(shift, float) else 'tensor'}"
                yield label, shape, state, shift, dense, float(spectrum[-1] / spectrum[0])

    def operators(self) -> dict[str, Callable[[State, Tensor, float | Tensor], Tensor]]:
        """The supported linear operators by name."""
        names = ["solve", *(name for name in ("apply", "sample") if name in self.structure.SUPPORTS)]
        return {name: getattr(self.structure, name) for name in names}
