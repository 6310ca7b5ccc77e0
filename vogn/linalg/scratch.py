"""A vector for many small tensors, with views where each of them goes: one call fills it, one call empties it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vogn.linalg.joining import split
from vogn.linalg.layout import Layout, lines


class Scratch:
    """The parameters of blocks, or what is shaped like them, in a vector of the block vectors.

    The views are made once; the next :meth:`fill` writes over what was there. The memory, which may be as long as the
    model, is there only between :meth:`fill` or :meth:`take` and :meth:`release`: nothing may read a view after that.

    Args:
        layouts: of the blocks; see :func:`simple`.
        dtype, device: of the vector.

    Attributes:
        vector: ``(n, 1)``.
        blocks: the block vectors in it.
        parts: the parameters in it, in the order of the layouts.
    """

    def __init__(self, layouts: Sequence[Layout], *, dtype: torch.dtype, device: torch.device) -> None:
        self.vector = torch.empty((sum(layout.numel for layout in layouts), 1), dtype=dtype, device=device)
        self.blocks = split(self.vector, [layout.block_shape for layout in layouts])
        self.parts = [
            part for layout, own in zip(layouts, self.blocks, strict=True) for part in layout.unpack(own).values()
        ]
        self._storage = self.vector.untyped_storage()
        self._bytes = self._storage.nbytes()
        self.release()

    def take(self) -> Tensor:
        """The vector, whatever is in it."""
        if self._storage.nbytes() == 0:
            self._storage.resize_(self._bytes)
        return self.vector

    def fill(self, tensors: Sequence[Tensor]) -> Tensor:
        """The vector of tensors like the parameters."""
        self.take()
        torch._foreach_copy_(self.parts, list(tensors))
        return self.vector

    def holding(self, vector: Tensor) -> Scratch:
        """This, with the numbers of another vector, or with its own."""
        if vector.data_ptr() != self.vector.data_ptr():
            self.take().copy_(vector)
        return self

    def release(self) -> None:
        """Give the memory back: what is in it is not needed any more."""
        self._storage.resize_(0)


def simple(layouts: Sequence[Layout]) -> bool:
    """Whether the parameters of all layouts are views of their block vectors."""
    return all(lines(layout) is not None for layout in layouts)
