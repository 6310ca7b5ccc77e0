"""Digests that tell whether tensors still hold the same bits."""

from __future__ import annotations

import torch
from torch import Tensor

_WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MULTIPLIER = 6364136223846793005
_CHUNK = 1 << 18


def digest(tensor: Tensor) -> int:
    """A 64-bit digest of all values: changing any single element changes it, other changes with probability near 1.

    Args:
        tensor: any dtype and shape, on any device; equal bits in equal order have equal digests on every device.

    Returns:
        A signed 64-bit integer.
    """
    values = tensor.detach()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    words = values.contiguous().flatten().view(_WORDS[values.element_size()])
    index = torch.arange(1, min(len(words), _CHUNK) + 1, device=words.device) * _MULTIPLIER  # wraps around
    factors = (index ^ (index >> 29)) | 1  # odd, so that no bit of a word is lost
    total = torch.zeros((), dtype=torch.int64, device=words.device)
    for part in words.split(_CHUNK):
        total = total * _MULTIPLIER + (part.to(torch.int64) * factors[: len(part)]).sum()
    return int(total)
