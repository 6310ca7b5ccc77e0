"""What processes that hold parts of a block, or nothing but its shape, rely on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from vogn.testing.structure_cases import StructureCases, assert_close
from vogn.types import Shape


class PartsConformance(StructureCases):
    """``ELEMENTWISE`` and ``READ_BY_OBSERVE`` are honest."""

    def test_observe_reads_no_other_numbers_than_it_declares(self) -> None:
        """A state of shapes alone, but for ``READ_BY_OBSERVE``, gives the same observation."""
        if "rows" not in self.structure.OBSERVES:
            return
        structure = self.structure
        for name, shape, state in self.states():
            shapes = structure.init(shape, initial=0.0, dtype=torch.float64, device="meta")
            known = {key: state[key] for key in structure.READ_BY_OBSERVE}
            if structure.ELEMENTWISE:
                known = _parts(state, shape, torch.arange(1))
            rows = self.rows(shape, seed=5)
            expected = structure.observe(state, rows)
            try:
                seen = structure.observe(state | shapes | known, rows)
            except (RuntimeError, NotImplementedError) as error:
                raise AssertionError(f"{name}: observe reads more than READ_BY_OBSERVE: {error}") from error
            assert seen.keys() == expected.keys(), name
            assert all(leaf.device.type != "meta" for leaf in seen.values()), f"{name}: a leaf has the state's numbers"
            for key, leaf in expected.items():
                assert torch.equal(seen[key], leaf), f"{name}: leaf {key!r}"

    def test_parts_of_an_elementwise_block_are_blocks(self) -> None:
        """Parts are updated, solved and sampled as the elements of the whole; also a part without any element."""
        structure = self.structure
        if not structure.ELEMENTWISE:
            return
        for name, shape, state in self.states():
            size = math.prod(shape)
            seen = self.observation(state, shape, seed=9)
            new = structure.refresh(structure.update(state, seen, decay=0.7, weight=0.3, shift=self.shift))
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
            halves = torch.arange(size) < (size + 1) // 2
            for kept in (halves.nonzero()[:, 0], (~halves).nonzero()[:, 0], torch.arange(0)):
                part = structure.update(
                    _parts(state, shape, kept), _parts(seen, shape, kept), decay=0.7, weight=0.3, shift=self.shift
                )
                part = structure.refresh(part)
                _assert_parts(part, _parts(new, shape, kept), name)
                for operator in self.operators().values():
                    mine = operator(part, _part(noise, shape, kept), self.shift)
                    assert torch.equal(mine, _part(operator(new, noise, self.shift), shape, kept)), name
            self._check_logdet(new, shape, name)

    def _check_logdet(self, state: dict[str, Tensor], shape: Shape, name: str) -> None:
        """The determinant of the whole is the product of those of its parts."""
        if "logdet" in self.structure.SUPPORTS:
            ones = [torch.tensor([k]) for k in range(math.prod(shape))]
            logdets = [self.structure.logdet(_parts(state, shape, kept), self.shift) for kept in ones]
            assert_close(torch.stack(logdets).sum(), self.structure.logdet(state, self.shift), 1e-12, name)


def _part(vector: Tensor, shape: Shape, kept: Tensor) -> Tensor:
    """Some elements of a block vector as ``(*batch, n, 1)``."""
    batch = vector.shape[: vector.ndim - len(shape)]
    return vector.reshape(*batch, math.prod(shape))[..., kept].unsqueeze(-1)


def _parts(tensors: Mapping[str, Tensor], shape: Shape, kept: Tensor) -> dict[str, Tensor]:
    return {key: _part(tensor, shape, kept) if tensor.ndim else tensor for key, tensor in tensors.items()}


def _assert_parts(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> None:
    assert actual.keys() == expected.keys(), name
    for key, tensor in expected.items():
        assert torch.equal(actual[key], tensor), f"{name}: state[{key!r}]"
