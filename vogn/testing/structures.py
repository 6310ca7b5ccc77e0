"""Conformance suite of :class:`vogn.structures.Structure`.

A third party inherits it; pytest collects the ``test_*`` methods::

    class TestMine(StructureConformance):
        structure = Mine(rank=3)

``to_dense(state, shift)`` is the only oracle. Everything runs in float64 on the CPU.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.linalg.rows import AnyRows, GradientRow, IndexedRows, JoinedRows, Rows
from vogn.structures import REGISTRY, structure_from_dict, structure_to_dict
from vogn.testing.structure_cases import assert_close, merged, normalised, raises, random_rows, some_examples
from vogn.testing.structure_operators import OperatorConformance
from vogn.testing.structure_parts import PartsConformance
from vogn.types import Observation, Shape, State


class StructureConformance(OperatorConformance, PartsConformance):
    """What every structure promises; subclasses set :attr:`structure`.

    Class attributes:
        structure: the configuration under test.
        shapes: block shapes, with and without leading dimensions.
        shift: a shift that makes every state well conditioned.
        tiny_shift: a shift that makes rank-deficient states ill conditioned.
    """

    # ------------------------------------------------------------------ observations

    def test_degree_tells_how_leaves_scale_with_the_loss(self) -> None:
        """A loss scale of 1024 multiplies a leaf of degree ``d`` by ``1024^d``."""
        shape = self.shapes[0]
        state = self.trained(shape)
        if "rows" in self.structure.OBSERVES:
            rows = self.rows(shape, seed=5)
            assert isinstance(rows, Rows)
            scaled = replace(rows, g=rows.g * 1024.0)
            self._check_degree(self.structure.observe(state, rows), self.structure.observe(state, scaled))
        if "probe" in self.structure.OBSERVES:
            probe, response = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            plain = self.structure.observe_probe(state, probe, response)
            self._check_degree(plain, self.structure.observe_probe(state, probe, response * 1024.0))

    def _check_degree(self, plain: Observation, scaled: Observation) -> None:
        degrees = self.structure.DEGREE
        for key, leaf in plain.items():
            assert key in degrees, f"leaf {key!r} is missing in DEGREE {degrees}"
            assert_close(scaled[key], leaf * 1024.0 ** degrees[key], 1e-12, f"leaf {key!r} of degree {degrees[key]}")

    def test_reduce_merges_micro_batches(self) -> None:
        """Observing 5 + 7 examples and merging equals observing 12."""
        if "rows" not in self.structure.OBSERVES:
            return
        for shape in self.shapes:
            for columns in (1, 3):
                state = self.trained(shape)
                rows = self.rows(shape, seed=5, examples=12, columns=columns)
                assert isinstance(rows, Rows)
                first, second = some_examples(rows, slice(0, 5)), some_examples(rows, slice(5, None))
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
            split = replace(rows, g=torch.cat([rows.g / 3**0.5] * 3, -4))
            one, three = self.structure.observe(state, rows), self.structure.observe(state, split)
            self._assert_same_curvature(state, three, one, rows.count, f"{shape}")

    def test_every_kind_of_rows_is_read_or_refused(self) -> None:
        """Rows with several positions, look-ups, a gradient and joined rows: read, or refused by name."""
        if "rows" not in self.structure.OBSERVES:
            return
        several = random_rows((3, 4), seed=0, positions=5)
        mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 0]).unsqueeze(1)
        masked = replace(several, g=several.g * mask.unsqueeze(-1), mask=mask)
        index = torch.tensor([[0, 2, 2], [1, 3, 0], [2, 2, 2], [0, 1, 2], [3, 3, 1], [1, 0, 0]])
        table = random_rows((3, 1), seed=1, positions=3)
        kinds: tuple[tuple[AnyRows, Shape], ...] = (
            (several, (3, 4)),
            (masked, (3, 4)),
            (IndexedRows(index, table.g, 4, outputs=table.outputs), (3, 4)),
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
        table = random_rows((3, 1), seed=1, examples=4, columns=2, positions=3)
        implicit = IndexedRows(index, table.g * mask.unsqueeze(-1), 4, mask, table.outputs)
        state = self.trained((3, 4))
        seen = self.structure.observe(state, implicit)
        explicit = Rows(implicit.a, implicit.g, mask, table.outputs)
        self._assert_same_curvature(state, seen, self.structure.observe(state, explicit), 4, "look-up")

    def _assert_same_curvature(
        self, state: State, left: Observation, right: Observation, count: int, name: str
    ) -> None:
        dense = []
        for seen in (left, right):
            part = normalised(self.structure, seen, count)
            new = self.structure.update(state, part, decay=0.7, weight=0.3, shift=self.shift)
            dense.append(self.structure.to_dense(self.structure.refresh(new), self.shift))
        assert_close(dense[0], dense[1], 1e-11, name)

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
        """Observing, updating, refreshing and the operators leave state, observation and vectors as they were, and so
        does whoever changes what ``apply`` and ``sample`` return."""
        for name, shape, state in self.states():
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            seen = self.observation(state, shape, seed=9)
            inputs = {**state, **{f"leaf {key}": leaf for key, leaf in seen.items()}, "noise": noise}
            copies = {key: tensor.clone() for key, tensor in inputs.items()}
            self.structure.update(state, seen, decay=0.5, weight=0.5, shift=self.shift)
            self.structure.refresh(state)
            self.structure.to_dense(state, self.shift)
            for feature, operator in self.operators().items():
                result = operator(state, noise, self.shift)
                if feature in ("apply", "sample"):
                    result.add_(1.0)
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
            outputs = {name: operator(state, noise, self.shift) for name, operator in self.operators().items()}
            for name, tensor in (state | outputs).items():
                kept = tensor.dtype == torch.float32 or not tensor.is_floating_point()  # counts are whole numbers
                assert kept, f"{shape}: {name} is {tensor.dtype}"

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
            "eigenvalue_bounds": lambda: structure.eigenvalue_bounds(state, self.shift),
            "pseudo_inverse": lambda: structure.pseudo_solve(state, v, self.shift),
            "tensor_shift": lambda: structure.solve(state, v, torch.full(shape, self.shift, dtype=torch.float64)),
        }
        for feature, call in undeclared.items():
            assert feature in supports or raises(call), f"{feature} is not in SUPPORTS but does not raise"
        assert "probe" in structure.OBSERVES or raises(lambda: structure.observe_probe(state, v, v))
        assert "rows" in structure.OBSERVES or raises(lambda: structure.observe(state, random_rows(shape, seed=0)))
