"""Triton, where it is installed. Without it the modules of the kernels can be imported, but nothing can be launched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ModuleNotFoundError as error:
    if error.name != "triton":
        raise  # installed, but one of its own dependencies is not
    triton = tl = None

Decorator = Callable[[Callable[..., Any]], Any]


def jit(*, keep_general: Sequence[str] = ()) -> Decorator:
    """``triton.jit``; arguments in ``keep_general`` do not lead to a compilation per kind of value."""
    if triton is None:
        return lambda function: function
    decorator: Decorator = triton.jit(do_not_specialize=list(keep_general))
    return decorator


def autotune(space: Sequence[dict[str, int]], *, key: Sequence[str]) -> Decorator:
    """``triton.autotune`` over a small space: each entry names the block sizes, ``warps`` and ``stages``.

    Under the interpreter, where nothing can be timed, the first entry is taken.
    """
    if triton is None:
        return lambda function: function
    entries = space[:1] if interpreted() else space
    configurations = [
        triton.Config(
            {name: size for name, size in entry.items() if name not in ("warps", "stages")},
            num_warps=entry["warps"],
            num_stages=entry["stages"],
        )
        for entry in entries
    ]
    decorator: Decorator = triton.autotune(configurations, key=list(key))
    return decorator


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter (``TRITON_INTERPRET=1`` when triton was first imported)."""
    return triton is not None and bool(triton.knobs.runtime.interpret)


def dot_precision() -> str:
    """How single precision is multiplied: as torch has been told to (``torch.set_float32_matmul_precision``)."""
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


def matrices(x: Tensor) -> Tensor:
    """``(*batch, n, m)`` as ``(B, n, m)``; any size may be zero."""
    return x.reshape(math.prod(x.shape[:-2]), *x.shape[-2:])


def blocks(size: int, block: int) -> int:
    """``ceil(size / block)``."""
    return -(-size // block)


def power_of_two(size: int, *, least: int = 1) -> int:
    """The smallest power of two that is not below ``size`` and ``least``."""
    return max(least, 1 << max(0, size - 1).bit_length())
