"""Conformance suite of :class:`vogn.structures.Structure`.

A third party inherits it; pytest collects the ``test_*`` methods::

    class TestMine(StructureConformance):
        structure = Mine(rank=3)

``to_dense(state, shift)`` is the only oracle. Everything runs in float64 on the CPU.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.linalg.rows import AnyRows, GradientRow, IndexedRows, JoinedRows, Rows
from vogn.structures import REGISTRY, Structure, structure_from_dict, structure_to_dict
from vogn.types import Observation, Shape, State

MODERATE = 1e5
"""Largest condition number at which solutions are compared directly; beyond it, residuals are."""


def random_rows(
    shape: Shape, *, seed: int, examples: int = 6, columns: int = 1, positions: int = 1, dtype: torch.dtype = torch.float64
) -> Rows:
    """Rows with standard normal inputs and output gradients for blocks ``(*lead, d_out, d_in)``."""
    source = torch.Generator().manual_seed(seed)
    *lead, d_out, d_in = shape
    a = torch.randn((*lead, examples, positions, d_in), generator=source, dtype=dtype)
    g = torch.randn((*lead, columns, examples, positions, d_out), generator=source, dtype=dtype)
    return Rows(a, g)


def normalised(structure: Structure, observation: Observation, count: int) -> Observation:
    """An observation of ``count`` examples as the optimizer hands it to ``update``."""
    divisor = math.sqrt(count) if structure.REDUCE == "concat" else count
    return {key: leaf / divisor for key, leaf in observation.items()}


def merged(structure: Structure, first: Observation, second: Observation) -> Observation:
    """Two observations as one."""
    if structure.REDUCE == "concat":
        return {key: torch.cat([first[key], second[key]]) for key in first}
    return {key: first[key] + second[key] for key in first}


class StructureConformance:
    """What every structure promises; subclasses set :attr:`structure`.

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

    # ------------------------------------------------------------------ states

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

    # ------------------------------------------------------------------ identities against to_dense

    def test_to_dense_without_shift_of_a_fresh_state_is_initial_times_identity(self) -> None:
        """``C_0 = initial * I`` (structures that ignore ``initial`` give the identity)."""
        for shape in self.shapes:
            dense = self.structure.to_dense(self.structure.refresh(self.fresh(shape, 0.5)))
            eye = torch.eye(math.prod(shape), dtype=torch.float64)
            assert any(torch.allclose(dense, scale * eye, rtol=1e-12) for scale in (0.5, 1.0)), f"{shape}: {dense}"

    def test_solve_inverts_to_dense(self) -> None:
        """Forward error up to a moderate condition number, relative residual beyond."""
        for name, shape, state, shift, dense, condition in self.systems():
            v = _vectors(dense, shape)
            x = self.structure.solve(state, v, shift)
            assert x.shape == v.shape, f"{name}: solve returns {tuple(x.shape)}"
            _assert_solves(dense, _flat(x, shape), _flat(v, shape), condition, name)

    def test_solve_with_exponent_inverts_the_power_of_c_plus_shift(self) -> None:
        """``(C^exponent + shift I)^-1 v``, or an error where it is not supported."""
        for name, shape, state in self.states():
            v = _vectors(torch.eye(math.prod(shape), dtype=torch.float64), shape)
            if "exponent" not in self.structure.SUPPORTS:
                call = self.structure.solve
                assert _raises(lambda s=state, v=v: call(s, v, self.shift, exponent=0.5)), f"{name}: exponent ignored"
                continue
            values, vectors = torch.linalg.eigh(self.structure.to_dense(state))
            for exponent in (0.5, 0.25):
                dense = (vectors * (values.clamp_min(0) ** exponent + self.shift)) @ vectors.T
                x = self.structure.solve(state, v, self.shift, exponent=exponent)
                # a rank-deficient oracle knows zero eigenvalues to 1e-16, and their fourth root to 1e-4
                reliable = values[0] > 1e-6
                tolerance = 1e-10 if reliable else 1e-2
                expected = torch.linalg.solve(dense, _flat(v, shape).T).T
                _assert_close(_flat(x, shape), expected, tolerance, f"{name}, exponent {exponent}")

    def test_apply_multiplies_by_to_dense(self) -> None:
        """``apply(v) = to_dense v``."""
        if "apply" not in self.structure.SUPPORTS:
            return
        for name, shape, state, shift, dense, _ in self.systems():
            v = _vectors(dense, shape)
            product = self.structure.apply(state, v, shift)
            assert product.shape == v.shape, f"{name}: apply returns {tuple(product.shape)}"
            _assert_close(_flat(product, shape), _flat(v, shape) @ dense, 1e-12, name)

    def test_sample_is_an_inverse_root_of_to_dense(self) -> None:
        """``S S^T = to_dense^-1``, with ``S`` read off from unit vectors: no Monte Carlo."""
        if "sample" not in self.structure.SUPPORTS:
            return
        for name, shape, state, shift, dense, condition in self.systems():
            covariance = self._covariance(state, shape, shift)
            eye = torch.eye(len(dense), dtype=torch.float64)
            _assert_solves(dense, covariance, eye, condition, name)

    def test_sample_is_linear_in_the_noise(self) -> None:
        """``S (2 x - 3 y) = 2 S x - 3 S y``."""
        if "sample" not in self.structure.SUPPORTS:
            return
        for name, shape, state, shift, _, _ in self.systems():
            x, y = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            draw = self.structure.sample
            both = 2 * draw(state, x, shift) - 3 * draw(state, y, shift)
            _assert_close(draw(state, 2 * x - 3 * y, shift), both, 1e-11, name)

    def test_logdet_is_that_of_to_dense(self) -> None:
        """``logdet = log det to_dense``, a scalar."""
        if "logdet" not in self.structure.SUPPORTS:
            return
        for name, _, state, shift, dense, condition in self.systems():
            value = self.structure.logdet(state, shift)
            assert value.ndim == 0, f"{name}: logdet is not a scalar"
            # the oracle knows its smallest eigenvalue to one rounding error of the largest
            error = abs(float(value - torch.logdet(dense)))
            assert error < 1e-10 + 1e-15 * condition * len(dense), f"{name}: logdet is off by {error:.3g}"

    def test_inverse_diagonal_is_that_of_the_inverse_of_to_dense(self) -> None:
        """``inverse_diagonal = diag(to_dense^-1)`` as a block vector."""
        if "inverse_diagonal" not in self.structure.SUPPORTS:
            return
        for name, shape, state, shift, dense, condition in self.systems():
            value = self.structure.inverse_diagonal(state, shift)
            assert value.shape == shape, f"{name}: inverse_diagonal is {tuple(value.shape)}"
            assert bool((value > 0).all()), f"{name}: inverse_diagonal is not positive"
            expected = torch.linalg.inv(dense).diagonal()
            _assert_close(value.flatten(), expected, 1e-10 + 1e-15 * condition * len(dense), name)

    def test_batch_dimensions_are_carried_along(self) -> None:
        """Operators act on every element of ``(2, 3, *shape)`` as on a single block vector."""
        for name, shape, state, shift, _, _ in self.systems():
            v = torch.randn((2, 3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            for feature, operator in self._operators().items():
                whole = operator(state, v, shift)
                parts = torch.stack([torch.stack([operator(state, x, shift) for x in row]) for row in v])
                _assert_close(whole, parts, 1e-12, f"{name}, {feature}")

    def test_sample_is_continuous_in_the_curvature(self) -> None:
        """A change of 1e-13 moves no sample by more than 1e-9, also where eigenvalues nearly coincide."""
        if "sample" not in self.structure.SUPPORTS:
            return
        for shape in self.shapes:
            for name, state in (("degenerate", self.fresh(shape, 1.0)), ("trained", self.trained(shape))):
                noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
                draws = []
                for seed in (1, 2):
                    moved = self.structure.refresh(self.perturbed(state, 1e-13, seed))
                    draws.append(self.structure.sample(moved, noise, self.shift))
                distance = float((draws[0] - draws[1]).abs().max())
                assert distance < 1e-9, f"{name} {shape}: a change of 1e-13 in C moves the sample by {distance:.3g}"

    def perturbed(self, state: State, size: float, seed: int) -> State:
        """The state with random changes in what ``refresh`` reads; symmetric ones in square trailing dimensions."""
        source = torch.Generator().manual_seed(seed)
        moved = dict(state)
        for key, tensor in state.items():
            if key in self.structure.REFRESHED or not tensor.is_floating_point():
                continue
            noise = torch.randn(tensor.shape, generator=source, dtype=tensor.dtype)
            side = math.isqrt(tensor.numel())
            if tensor.ndim % 2 == 0 and tensor.shape[: tensor.ndim // 2] == tensor.shape[tensor.ndim // 2 :]:
                matrix = noise.reshape(side, side)
                noise = (matrix + matrix.T).reshape(tensor.shape)
            elif tensor.ndim >= 2 and tensor.shape[-1] == tensor.shape[-2]:
                noise = noise + noise.mT
            moved[key] = tensor + size * noise
        return moved

    # ------------------------------------------------------------------ observations

    def test_degree_tells_how_leaves_scale_with_the_loss(self) -> None:
        """A loss scale of 1024 multiplies a leaf of degree ``d`` by ``1024^d``."""
        shape = self.shapes[0]
        state = self.trained(shape)
        if "rows" in self.structure.OBSERVES:
            rows = self.rows(shape, seed=5)
            assert isinstance(rows, Rows)
            scaled = Rows(rows.a, rows.g * 1024.0)
            self._check_degree(self.structure.observe(state, rows), self.structure.observe(state, scaled))
        if "probe" in self.structure.OBSERVES:
            probe, response = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            plain = self.structure.observe_probe(state, probe, response)
            self._check_degree(plain, self.structure.observe_probe(state, probe, response * 1024.0))

    def _check_degree(self, plain: Observation, scaled: Observation) -> None:
        degrees = self.structure.DEGREE
        for key, leaf in plain.items():
            assert key in degrees, f"leaf {key!r} is missing in DEGREE {degrees}"
            factor = 1.0 if key == "count" else 1024.0 ** degrees[key]
            _assert_close(scaled[key], leaf * factor, 1e-12, f"leaf {key!r} of degree {degrees[key]}")

    def test_reduce_merges_micro_batches(self) -> None:
        """Observing 5 + 7 examples and merging equals observing 12."""
        if "rows" not in self.structure.OBSERVES:
            return
        for shape in self.shapes:
            for columns in (1, 3):
                state = self.trained(shape)
                rows = self.rows(shape, seed=5, examples=12, columns=columns)
                assert isinstance(rows, Rows)
                first = Rows(rows.a[..., :5, :, :], rows.g[..., :5, :, :])
                second = Rows(rows.a[..., 5:, :, :], rows.g[..., 5:, :, :])
                parts = merged(
                    self.structure, self.structure.observe(state, first), self.structure.observe(state, second)
                )
                self._assert_same_curvature(state, parts, self.structure.observe(state, rows), 12, f"{shape}")

    def test_columns_are_not_examples(self) -> None:
        """Three columns ``g / sqrt(3)`` are the same evidence as one column ``g``."""
        if "rows" not in self.structure.OBSERVES:
            return
        for shape in self.shapes:
            state = self.trained(shape)
            rows = self.rows(shape, seed=5)
            assert isinstance(rows, Rows)
            split = Rows(rows.a, torch.cat([rows.g / 3**0.5] * 3, -4))
            one, three = self.structure.observe(state, rows), self.structure.observe(state, split)
            self._assert_same_curvature(state, three, one, rows.count, f"{shape}")

    def test_every_kind_of_rows_is_read_or_refused(self) -> None:
        """Rows with several positions, look-ups, a gradient and joined rows: understood, or an error of its own type."""
        if "rows" not in self.structure.OBSERVES:
            return
        several = random_rows((3, 4), seed=0, positions=5)
        mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 0]).unsqueeze(1)
        masked = Rows(several.a, several.g * mask.unsqueeze(-1), mask)
        index = torch.tensor([[0, 2, 2], [1, 3, 0], [2, 2, 2], [0, 1, 2], [3, 3, 1], [1, 0, 0]])
        g = random_rows((3, 1), seed=1, positions=3).g
        kinds: tuple[tuple[AnyRows, Shape], ...] = (
            (several, (3, 4)),
            (masked, (3, 4)),
            (IndexedRows(index, g, 4), (3, 4)),
            (GradientRow(several.dense().sum((0, 1))), (3, 4)),
            (JoinedRows((several, random_rows((2, 1), seed=2))), (14, 1)),
        )
        for rows, shape in kinds:
            state = self.fresh(shape)
            try:
                seen = normalised(self.structure, self.structure.observe(state, rows), rows.count)
            except UnsupportedObservationError:
                assert isinstance(rows, GradientRow | JoinedRows), f"{type(rows).__name__} must be read"
                continue
            new = self.structure.refresh(self.structure.update(state, seen, decay=0.5, weight=0.5, shift=0.1))
            assert bool(self.structure.to_dense(new, 0.1).isfinite().all()), type(rows).__name__

    def test_look_ups_equal_their_one_hot_rows(self) -> None:
        """An embedding's implicit rows and the same rows with explicit inputs are the same evidence."""
        if "rows" not in self.structure.OBSERVES:
            return
        index = torch.tensor([[0, 2, 2], [1, 3, 0], [2, 2, 2], [0, 1, 2]])
        mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0]], dtype=torch.bool)
        g = random_rows((3, 1), seed=1, examples=4, columns=2, positions=3).g * mask.unsqueeze(-1)
        implicit = IndexedRows(index, g, 4, mask)
        state = self.trained((3, 4))
        seen = self.structure.observe(state, implicit)
        self._assert_same_curvature(state, seen, self.structure.observe(state, Rows(implicit.a, g, mask)), 4, "look-up")

    def _assert_same_curvature(
        self, state: State, left: Observation, right: Observation, count: int, name: str
    ) -> None:
        dense = []
        for seen in (left, right):
            part = normalised(self.structure, seen, count)
            new = self.structure.update(state, part, decay=0.7, weight=0.3, shift=self.shift)
            dense.append(self.structure.to_dense(self.structure.refresh(new), self.shift))
        _assert_close(dense[0], dense[1], 1e-11, name)

    # ------------------------------------------------------------------ states and configuration

    def test_states_are_plain_tensors_and_survive_torch_save(self) -> None:
        """``torch.load(weights_only=True)`` gives back every tensor."""
        for name, _, state in self.states():
            buffer = io.BytesIO()
            torch.save(state, buffer)
            buffer.seek(0)
            loaded = torch.load(buffer, weights_only=True)
            assert type(state) is dict and loaded.keys() == state.keys(), name
            for key, tensor in state.items():
                assert type(key) is str and type(tensor) is Tensor, f"{name}: state[{key!r}] is {type(tensor).__name__}"
                assert not tensor.requires_grad and torch.equal(loaded[key], tensor), f"{name}: state[{key!r}]"

    def test_nothing_mutates_its_inputs(self) -> None:
        """Observing, updating, refreshing and the operators leave state, observation and vectors as they were."""
        for name, shape, state in self.states():
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            seen = self.observation(state, shape, seed=9)
            inputs = {**state, **{f"leaf {key}": leaf for key, leaf in seen.items()}, "noise": noise}
            copies = {key: tensor.clone() for key, tensor in inputs.items()}
            self.structure.update(state, seen, decay=0.5, weight=0.5, shift=self.shift)
            self.structure.refresh(state)
            self.structure.to_dense(state, self.shift)
            for operator in self._operators().values():
                operator(state, noise, self.shift)
            for key, tensor in inputs.items():
                assert torch.equal(tensor, copies[key]), f"{name}: {key} was changed in place"

    def test_refresh_writes_only_what_it_declares(self) -> None:
        """Only ``REFRESHED`` keys change, and all of them exist."""
        for name, _, state in self.states():
            assert set(self.structure.REFRESHED) <= state.keys(), name
            new = self.structure.refresh(state)
            assert new.keys() == state.keys(), name
            for key in state.keys() - set(self.structure.REFRESHED):
                assert torch.equal(new[key], state[key]), f"{name}: refresh changed {key!r}"

    def test_single_precision_stays_single(self) -> None:
        """A float32 state stays float32 through updates and operators."""
        for shape in self.shapes:
            state = self.structure.init(shape, initial=0.5, dtype=torch.float32, device="cpu")
            seen = {key: leaf.float() for key, leaf in self.observation(self.fresh(shape), shape, seed=0).items()}
            state = self.structure.refresh(self.structure.update(state, seen, decay=0.5, weight=0.5, shift=self.shift))
            noise = torch.ones(shape)
            outputs = {name: operator(state, noise, self.shift) for name, operator in self._operators().items()}
            for name, tensor in (state | outputs).items():
                assert tensor.dtype == torch.float32, f"{shape}: {name} is {tensor.dtype}"

    def test_memory_can_be_asked_without_allocating(self) -> None:
        """``bytes_per_block`` counts the state in float32."""
        for shape in self.shapes:
            expected = sum(4 * tensor.numel() for tensor in self.fresh(shape).values())
            assert self.structure.bytes_per_block(shape) == expected

    def test_configuration_survives_json(self) -> None:
        """``structure_from_dict(structure_to_dict(s)) == s`` through JSON, for registered structures."""
        if type(self.structure) in REGISTRY.values():
            text = json.dumps(structure_to_dict(self.structure))
            assert structure_from_dict(json.loads(text)) == self.structure

    def test_features_that_are_not_declared_raise(self) -> None:
        """``SUPPORTS`` and ``OBSERVES`` are honest."""
        shape = self.shapes[0]
        state, v = self.trained(shape), torch.ones(shape, dtype=torch.float64)
        structure, supports = self.structure, self.structure.SUPPORTS
        undeclared: dict[str, Callable[[], object]] = {
            "apply": lambda: structure.apply(state, v, self.shift),
            "sample": lambda: structure.sample(state, v, self.shift),
            "logdet": lambda: structure.logdet(state, self.shift),
            "inverse_diagonal": lambda: structure.inverse_diagonal(state, self.shift),
            "tensor_shift": lambda: structure.solve(state, v, torch.full(shape, self.shift, dtype=torch.float64)),
        }
        for feature, call in undeclared.items():
            assert feature in supports or _raises(call), f"{feature} is not in SUPPORTS but does not raise"
        assert "probe" in structure.OBSERVES or _raises(lambda: structure.observe_probe(state, v, v))
        assert "rows" in structure.OBSERVES or _raises(lambda: structure.observe(state, random_rows(shape, seed=0)))

    # ------------------------------------------------------------------ helpers

    def _operators(self) -> dict[str, Callable[[State, Tensor, float | Tensor], Tensor]]:
        names = ["solve", *(name for name in ("apply", "sample") if name in self.structure.SUPPORTS)]
        return {name: getattr(self.structure, name) for name in names}

    def _covariance(self, state: State, shape: Shape, shift: float | Tensor) -> Tensor:
        eye = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
        root = self.structure.sample(state, eye, shift).reshape(len(eye), -1)  # row j is S e_j
        return root.T @ root


def _vectors(dense: Tensor, shape: Shape) -> Tensor:
    """Block vectors: some random, some in the range of the curvature, where gradients lie."""
    source = torch.Generator().manual_seed(3)
    v = torch.randn((3, len(dense)), generator=source, dtype=torch.float64)
    return torch.cat([v, v @ dense]).reshape(-1, *shape)


def _flat(v: Tensor, shape: Shape) -> Tensor:
    return v.reshape(-1, math.prod(shape))


def _assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str) -> None:
    """Largest error relative to the largest number expected (or to 1e-12 if all are smaller)."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    scale = max(float(expected.abs().max()), 1e-12) if expected.numel() else 1.0
    error = float((actual - expected).abs().max()) / scale if expected.numel() else 0.0
    assert error < tolerance, f"{name}: relative error {error:.3g}, allowed {tolerance:.3g}"


def _assert_solves(dense: Tensor, x: Tensor, v: Tensor, condition: float, name: str) -> None:
    """Rows of ``x`` solve ``dense x = v``."""
    if condition <= MODERATE:
        _assert_close(x, torch.linalg.solve(dense, v.T).T, 1e-10, f"{name}, condition {condition:.1g}")
        return
    residual = torch.linalg.vector_norm(x @ dense - v, dim=-1)
    largest = torch.linalg.matrix_norm(dense, 2)
    scale = largest * torch.linalg.vector_norm(x, dim=-1) + torch.linalg.vector_norm(v, dim=-1)
    worst = float((residual / scale).max())
    assert worst < 1e-12, f"{name}, condition {condition:.1g}: relative residual {worst:.3g}"


def _raises(call: Callable[[], object]) -> bool:
    try:
        call()
    except UnsupportedObservationError:
        return True
    return False
