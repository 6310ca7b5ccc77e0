"""Blocks whose arithmetic is elementwise are computed together: a step is a few passes over all of them.

What a block is does not change: its state, its noise and its name stay its own. Its tensors are views of longer ones
between two steps, so that the next step need not copy them together again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from vogn.capture.partition import Block
from vogn.distributed import Placement
from vogn.linalg.joining import join, split
from vogn.linalg.scratch import Scratch, simple
from vogn.structures.base import Structure
from vogn.types import Shape, State

LARGE = 1 << 14
"""On the CPU blocks with more elements than this stay alone: calls cost little there beside their work."""
PLAIN = (Tensor, torch.nn.Parameter)
KEPT = 8
"""Bundles of several blocks whose views are kept for the next step."""


Purpose = Literal["displacement", "kept", "mean", "gradient"]
"""What a bundle's memory is for: a weight sample minus the mean, the mean while the sample is in the model, mean and
gradient in a step."""


@dataclass(frozen=True, eq=False)
class Bundle:
    """Blocks of one param group and one structure that are computed together; usually one.

    Args:
        blocks: at least one.
    """

    blocks: tuple[Block, ...]

    @cached_property
    def parameters(self) -> tuple[Tensor, ...]:
        """Of all blocks."""
        return tuple(parameter for block in self.blocks for parameter in block.parameters)

    @cached_property
    def shapes(self) -> list[Shape]:
        """Of the block vectors."""
        return [block.layout.block_shape for block in self.blocks]

    @property
    def has_scratch(self) -> bool:
        """Whether there are several blocks, of plain parameters of the curvature's dtype that are views of their block
        vectors. Parameters may change: this is what they are now."""
        if not self._is_simple:
            return False
        first = self.blocks[0]
        dtype, device = first.curvature_dtype, first.parameters[0].device
        return all(type(p) in PLAIN and p.dtype == dtype and p.device == device for p in self.parameters)

    def scratch(self, purpose: Purpose) -> Scratch:
        """Memory for a vector of this bundle; where :attr:`has_scratch`. It is written over by the next use."""
        first, found = self.blocks[0], self._scratches.get(purpose)
        dtype, device = first.curvature_dtype, first.parameters[0].device
        if found is None or found.vector.dtype != dtype or found.vector.device != device:
            layouts = [block.layout for block in self.blocks]
            found = self._scratches[purpose] = Scratch(layouts, dtype=dtype, device=device)
        return found

    def gradient(self) -> Tensor | None:
        """The parameters' gradients in the memory for them; ``None`` if one is missing or no plain dense tensor."""
        grads = [parameter.grad for parameter in self.parameters]
        if not self.has_scratch or not all(type(grad) is Tensor and grad.layout is torch.strided for grad in grads):
            return None
        return self.scratch("gradient").fill([grad for grad in grads if grad is not None])

    def release(self, *purposes: Purpose) -> None:
        """The memory for these is free."""
        for purpose in purposes:
            if purpose in self._scratches:
                self._scratches[purpose].release()

    @cached_property
    def _is_simple(self) -> bool:
        return len(self.blocks) > 1 and simple([block.layout for block in self.blocks])

    @cached_property
    def _scratches(self) -> dict[Purpose, Scratch]:
        return {}

    @property
    def structure(self) -> Structure:
        """Of all its blocks."""
        return self.blocks[0].structure

    @property
    def name(self) -> str:
        """For messages: a failure of several blocks is looked for in each of them."""
        return self.blocks[0].name

    def join(self, vectors: Sequence[Tensor]) -> Tensor:
        """One vector of the block vectors."""
        return vectors[0] if len(self.blocks) == 1 else join(vectors)

    def split(self, vector: Tensor) -> list[Tensor]:
        """The block vectors in a vector, as views."""
        if len(self.blocks) == 1:
            return [vector]
        return split(vector, self.shapes)

    def join_states(self, states: Sequence[State]) -> State:
        """One state of block vectors and single numbers; the numbers are the same in all of them."""
        if len(self.blocks) == 1:
            return states[0]
        return {
            key: self._join_batches([state[key] for state in states]) if first.ndim else first
            for key, first in states[0].items()
        }

    def _join_batches(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors ``(*batch, *block_shape)`` as ``(*batch, n, 1)``."""
        batch = tensors[0].shape[: tensors[0].ndim - len(self.blocks[0].layout.block_shape)]
        if not batch:
            return self.join(tensors)
        return torch.cat([tensor.flatten(len(batch)) for tensor in tensors], -1).unsqueeze(-1)

    def split_state(self, state: State, old: Sequence[State] = ()) -> list[State]:
        """The states of the blocks.

        Args:
            state: of all together.
            old: the blocks' states before; those of their tensors that are the same memory are kept as they are.
        """
        if len(self.blocks) == 1:
            return [state]
        parts = {key: self._parts(key, x, old) if x.ndim else [x] * len(self.blocks) for key, x in state.items()}
        return [{key: part[k] for key, part in parts.items()} for k in range(len(self.blocks))]

    def _parts(self, key: str, vector: Tensor, old: Sequence[State]) -> list[Tensor]:
        if old and key in old[0] and old[0][key].data_ptr() == vector.data_ptr():
            return [state[key] for state in old]
        return self.split(vector)


class Bundles:
    """Which blocks may be computed together: elementwise ones of one param group, structure, dtype and device.

    Args:
        group_of: block to its param group.
        placement: who holds the blocks: those that processes divide stay alone.
        elementwise: whether all that is done with a block's vectors is elementwise where its structure is.
    """

    def __init__(
        self,
        group_of: Mapping[Block, Any],
        placement: Mapping[Block, Placement],
        *,
        elementwise: bool,
    ) -> None:
        self._keys: dict[Block, Hashable] = {}
        self._known: dict[tuple[Block, ...], Bundle] = {}
        for block, group in group_of.items():
            device = block.parameters[0].device
            small = device.type != "cpu" or block.layout.numel <= LARGE
            if elementwise and small and block.structure.ELEMENTWISE and not placement[block].divided:
                self._keys[block] = (id(group), block.structure, block.curvature_dtype, device)

    def of(
        self, blocks: Iterable[Block], alike: Callable[[Block], Hashable] = lambda block: None, *, together: bool = True
    ) -> list[Bundle]:
        """The given blocks in bundles.

        Args:
            blocks: those that are to be computed now.
            alike: the blocks of a bundle have it in common.
            together: if not, every block is a bundle of its own.
        """
        found: dict[Hashable, list[Block]] = {}
        for block in blocks:
            key = (self._keys[block], alike(block)) if together and block in self._keys else block
            found.setdefault(key, []).append(block)
        return [self._bundle(tuple(members)) for members in found.values()]

    def release(self, *purposes: Purpose) -> None:
        """The memory for these is free, in all bundles."""
        for bundle in self._known.values():
            bundle.release(*purposes)

    def _bundle(self, blocks: tuple[Block, ...]) -> Bundle:
        """The same for the same blocks, with its memory; no more than :data:`KEPT` of them."""
        if len(blocks) == 1:
            return Bundle(blocks)
        bundle = self._known.get(blocks)
        if bundle is None:
            if len(self._known) >= KEPT:
                self._known.clear()
            bundle = self._known[blocks] = Bundle(blocks)
        return bundle


def numbers_in(state: State) -> tuple[Any, ...]:
    """Names of a state's tensors, and the values of its single numbers."""
    return tuple((key, tensor.item() if tensor.ndim == 0 else None) for key, tensor in state.items())
