"""Blocks whose arithmetic is elementwise are computed together: a step is a few passes over all of them.

What a block is does not change: its state, its noise and its name stay its own. Its tensors are views of longer ones
between two steps, so that the next step need not copy them together again.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vogn.capture.partition import Block
from vogn.distributed import Placement
from vogn.linalg.joining import join, split
from vogn.structures.base import Structure
from vogn.types import State

LARGE = 1 << 14
"""On the CPU blocks with more elements than this stay alone: calls cost little there beside their work."""


@dataclass(frozen=True)
class Bundle:
    """Blocks of one param group and one structure that are computed together; usually one.

    Args:
        blocks: at least one.
    """

    blocks: tuple[Block, ...]

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
        return split(vector, [block.layout.block_shape for block in self.blocks])

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

    def split_state(self, state: State) -> list[State]:
        """The states of the blocks."""
        if len(self.blocks) == 1:
            return [state]
        parts = {key: self.split(x) if x.ndim else [x] * len(self.blocks) for key, x in state.items()}
        return [{key: part[k] for key, part in parts.items()} for k in range(len(self.blocks))]


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
        return [Bundle(tuple(members)) for members in found.values()]


def numbers_in(state: State) -> tuple[Any, ...]:
    """Names of a state's tensors, and the values of its single numbers."""
    return tuple((key, tensor.item() if tensor.ndim == 0 else None) for key, tensor in state.items())
