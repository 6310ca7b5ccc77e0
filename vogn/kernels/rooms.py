"""Memory that is used again: on the CPU fresh memory costs more time than most of what is done in it."""

from __future__ import annotations

import ctypes
import math
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

SMALL = 1 << 16
"""Bytes up to which the allocator keeps memory for itself: it is not worth to do so here."""


PAGE, STRIDE = 1 << 12, 5 << 6
"""Bytes. Long arrays all begin at the same place in a page, and a processor takes a load for one of what has just been
stored at the same place of another page: here they begin at different ones."""


class Rooms:
    """Long tensors whose memory comes back once nothing holds it any more, views included.

    The allocator of the C library gives long arrays back to the system, and every page of the next one is a fault. What
    is kept here is at most what was in use at once, and only as long as somebody holds this object (:func:`shared`).
    """

    def __init__(self) -> None:
        self._free: dict[int, list[Tensor]] = {}

    def empty(self, shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
        """A contiguous tensor as ``torch.empty`` makes it; of kept memory on the CPU only."""
        size = math.prod(shape) * dtype.itemsize
        if size <= SMALL or torch.device(device).type != "cpu":
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        free = self._free.setdefault(size, [])
        owner = free.pop() if free else torch.empty(size + PAGE, dtype=torch.uint8, device="cpu")
        if type(owner) is not Tensor:  # one without numbers
            return torch.empty(tuple(shape), dtype=dtype, device=device)
        place = owner.data_ptr()
        lease = (ctypes.c_uint8 * size).from_address(place + place // PAGE * STRIDE % PAGE)
        # the storage of the tensor holds the lease, and what is called at the end of the lease holds the memory
        weakref.finalize(lease, _give_back, weakref.ref(self), size, owner).atexit = False
        return torch.frombuffer(lease, dtype=dtype).view(tuple(shape))


def _give_back(rooms: weakref.ref[Rooms], size: int, owner: Tensor) -> None:
    found = rooms()
    if found is not None:
        found._free[size].append(owner)


_living: list[weakref.ref[Rooms]] = []


def shared() -> Rooms:
    """The rooms of this process; they go with the last object that keeps what this has returned."""
    found = _living[0]() if _living else None
    if found is None:
        found = Rooms()
        _living[:] = [weakref.ref(found)]
    return found


def empty(shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """``torch.empty``, of the shared rooms where somebody keeps them."""
    found = _living[0]() if _living else None
    return (
        torch.empty(tuple(shape), dtype=dtype, device=device)
        if found is None
        else found.empty(shape, dtype=dtype, device=device)
    )


def empty_like(tensor: Tensor) -> Tensor:
    """A contiguous tensor of another's shape, dtype and device; like :func:`torch.empty_like` for other tensors than
    plain ones."""
    if type(tensor) is not Tensor or not tensor.is_contiguous():
        return torch.empty_like(tensor)
    return empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def cat(tensors: list[Tensor], dim: int) -> Tensor:
    """``torch.cat``, in memory from here; inside of the transforms of ``torch.func`` it is not to be used."""
    if not plain(*tensors):
        return torch.cat(tensors, dim)
    first = tensors[0]
    shape = list(first.shape)
    shape[dim] = sum(tensor.shape[dim] for tensor in tensors)
    return torch.cat(tensors, dim, out=empty(shape, dtype=first.dtype, device=first.device))


def plain(*tensors: Tensor) -> bool:
    """Whether a result of these may be written into memory that is there: autograd does not allow it."""
    recording = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return not recording and all(
        type(x) in (Tensor, torch.nn.Parameter) and x.dtype == tensors[0].dtype and x.device.type == "cpu"
        for x in tensors
    )
