"""Vectors of any shape as one, and back: elementwise arithmetic on many small tensors costs one call each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vogn.types import Shape


def join(tensors: Sequence[Tensor]) -> Tensor:
    """All elements in one vector ``(n, 1)``: the tensors' own memory if they lie there in a row, else a copy.

    Args:
        tensors: at least one, of one dtype and device, without gradients.
    """
    first = tensors[0]
    if len(tensors) == 1 and first.is_contiguous():
        return first.view(-1, 1)
    if _in_a_row(tensors):
        return first.as_strided((sum(t.numel() for t in tensors), 1), (1, 1), first.storage_offset())
    return torch.cat([tensor.reshape(-1) for tensor in tensors]).unsqueeze(-1)


def split(vector: Tensor, shapes: Sequence[Shape]) -> list[Tensor]:
    """The inverse of :func:`join`, as views; batch dimensions in front of ``(n, 1)`` are carried along."""
    batch = vector.shape[:-2]
    parts = vector.squeeze(-1).split([torch.Size(shape).numel() for shape in shapes], -1)
    return [part.reshape(*batch, *shape) for part, shape in zip(parts, shapes, strict=True)]


def _in_a_row(tensors: Sequence[Tensor]) -> bool:
    first = tensors[0]
    size, place = first.element_size(), first.data_ptr()
    for tensor in tensors:
        if tensor.data_ptr() != place or not tensor.is_contiguous():
            return False
        place += tensor.numel() * size
    storage = first.untyped_storage()  # arrays may follow each other without being one
    return place <= storage.data_ptr() + storage.nbytes()
