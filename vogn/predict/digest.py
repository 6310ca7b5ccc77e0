"""Digests that tell whether tensors still hold the same bits."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def digest(tensor: Tensor) -> int:
    """A 64-bit digest of all values, by BLAKE2b.

    Args:
        tensor: any dtype and shape, on any device; equal bits in equal order have equal digests on every device.
    """
    values = tensor.detach()
    if values.is_complex():
        values = torch.view_as_real(values.resolve_conj())
    words = values.cpu().contiguous().flatten().view(torch.uint8)
    return int.from_bytes(hashlib.blake2b(words.numpy().data, digest_size=8).digest(), "little", signed=True)
