"""Kernels in C for the CPU: compiled for the machine at their first use, where there is a compiler.

Everything here has another way to be computed, so that nothing fails without a compiler: :func:`available` tells, and
``VOGN_KERNELS=reference`` switches these kernels off.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vogn.kernels.native.build import library

TILE = 256
"""Numbers that are drawn together; a stream can be entered at their multiples."""
PART = 1 << 18
"""Numbers for which it is worth to start a thread."""


def available() -> bool:
    """Whether the kernels are used: there is a library, its first numbers are right, and they are not switched off."""
    return os.environ.get("VOGN_KERNELS", "") != "reference" and not why_not()


@cache
def why_not() -> str:
    """Why the kernels cannot be used on this machine; empty if they can."""
    from vogn.kernels.native.oracle import normal_numbers

    found = library()
    if isinstance(found, str):
        return found
    drawn = torch.empty(2 * TILE + 3)
    _functions().vogn_fill_normal(drawn.data_ptr(), drawn.numel(), 1 << 40, 0)
    if not torch.equal(drawn, normal_numbers(drawn.numel(), seed=1 << 40)):
        return "the compiled library draws other numbers than it should: its compiler reorders arithmetic"
    return ""


@cache
def _functions() -> Any:
    found = library()
    assert not isinstance(found, str)
    found.vogn_fill_normal.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint64, ctypes.c_uint64)
    found.vogn_fill_normal.restype = None
    return found


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these: single precision, contiguous, on the CPU."""
    return all(x.device.type == "cpu" and x.dtype == torch.float32 and x.is_contiguous() for x in tensors)


def fill_normal(out: Tensor, *, seed: int) -> None:
    """Write standard normal numbers, the first of a stream; the same bits with any number of threads.

    Args:
        out: see :func:`takes`.
        seed: of the stream, in ``[0, 2^64)``.

    Source: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3"; Box, Muller (1958).
    """
    start, fill = out.data_ptr(), _functions().vogn_fill_normal

    def part(first: int, last: int) -> None:
        fill(start + 4 * first, last - first, seed, first)

    in_parts(out.numel(), part)


def in_parts(count: int, part: Any) -> None:
    """Call ``part(first, last)`` for ranges that begin at multiples of :data:`TILE`, each in a thread of its own: as
    many as torch uses, fewer for short ranges."""
    threads = max(1, min(torch.get_num_threads(), count // PART))
    if threads == 1:
        part(0, count)
        return
    ends = [count * k // threads // TILE * TILE for k in range(threads)] + [count]
    others = [threading.Thread(target=part, args=ends[k : k + 2]) for k in range(1, threads)]
    for thread in others:
        thread.start()
    part(ends[0], ends[1])
    for thread in others:
        thread.join()
