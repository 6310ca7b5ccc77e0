"""One table: which implementations an operation has, and which one a call takes."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from vogn.errors import MissingExtraError
from vogn.kernels import native, reference

VARIABLE = "VOGN_KERNELS"
"""Environment variable, read at every call: forces ``triton`` or ``reference`` where an operation has both."""

SLOWER = frozenset({"squared_gradients", "woodbury_solve"})
"""Kernels that took longer than PyTorch where they were measured: they run only where they are asked for."""

SLOWER_THAN_OWN = frozenset({"patch_factor", "eigenbasis_solve"})
"""Kernels that took longer, at most of the sizes that were measured, than the code that structures have of their own,
which does less than the reference: that code takes them only where they are asked for."""

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
"""What the Triton kernels read and write; they compute in single precision."""


def _triton(op: str) -> Callable[..., Any]:
    """The function ``op`` of ``vogn.kernels.gpu.op``, imported at its first call, run on its tensors' device."""

    def launch(*args: Any, **options: Any) -> Any:
        function = getattr(import_module(f"vogn.kernels.gpu.{op}"), op)
        device = next(x.device for x in args if isinstance(x, Tensor))
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return function(*args, **options)

    launch.__name__ = launch.__qualname__ = op
    return launch


TABLE: dict[str, dict[str, Callable[..., Any]]] = {
    "row_dense": {"reference": reference.row_dense},
    "row_squares": {"reference": reference.row_squares},
    "row_matvec": {"reference": reference.row_matvec},
    "row_rmatvec": {"reference": reference.row_rmatvec},
    "row_gram": {"reference": reference.row_gram},
    "diagonal_step": {
        "reference": reference.diagonal_step,
        "triton": _triton("diagonal_step"),
        "native": native.diagonal_step,
    },
    "linear_step": {"reference": reference.linear_step, "native": native.linear_step},
    "squared_gradients": {"reference": reference.squared_gradients, "triton": _triton("squared_gradients")},
    "symmetric_update": {"reference": reference.symmetric_update, "triton": _triton("symmetric_update")},
    "woodbury_solve": {"reference": reference.woodbury_solve, "triton": _triton("woodbury_solve")},
    "eigenbasis_solve": {"reference": reference.eigenbasis_solve, "triton": _triton("eigenbasis_solve")},
    "inverse_root": {"reference": reference.inverse_root, "triton": _triton("inverse_root")},
    "patch_factor": {"reference": reference.patch_factor, "triton": _triton("patch_factor")},
}


def kernel(op: str, backend: str = "reference") -> Callable[..., Any]:
    """The implementation of ``op`` in ``backend``, whatever the device and the environment.

    Raises:
        KeyError: if the operation or the backend is unknown.
    """
    return TABLE[op][backend]


def select(op: str, *tensors: Tensor, limit: str = "") -> Callable[..., Any]:
    """The implementation that a call takes: Triton's on CUDA where it can, the reference otherwise.

    Args:
        op: a key of :data:`TABLE`.
        tensors: the operands.
        limit: why Triton's kernel cannot take sizes like these; empty if it can.

    Raises:
        ValueError: if :data:`VARIABLE` has an unknown value, or forces Triton on operands that it cannot take.
        MissingExtraError: if it forces Triton, which is not installed.
    """
    forced, table = _forced(), TABLE[op]
    if forced == "reference" or "triton" not in table:
        return table["reference"]
    on_cuda = all(x.is_cuda for x in tensors)
    if not limit:
        odd = sorted({str(x.dtype).removeprefix("torch.") for x in tensors if x.dtype not in DTYPES})
        limit = f"it takes float16, bfloat16 and float32, not {' and '.join(odd)}" if odd else ""
    if not forced:
        fast = on_cuda and not limit and op not in SLOWER and installed()
        return table["triton" if fast else "reference"]
    _require_installed()
    if limit:
        raise ValueError(f"{VARIABLE}=triton, but {op} has no kernel for this: {limit}; unset {VARIABLE}")
    if not on_cuda and not _interpreted():
        raise ValueError(
            f"{VARIABLE}=triton, but an operand of {op} is not on CUDA: move it there, unset {VARIABLE}, or set "
            "TRITON_INTERPRET=1 before Python starts to run the kernels slowly on the CPU"
        )
    return table["triton"]


def fitting(op: str, *tensors: Tensor, limit: str = "", slower: bool = False) -> Callable[..., Any] | None:
    """The kernel that code with a way of its own is to take, Triton's or on the CPU one in C; ``None`` where it goes
    its own way.

    Unlike :func:`select` it never raises because of the operands: an optimizer of a float64 model, or of one on the
    CPU, works under ``VOGN_KERNELS=triton`` as it does without. Kernels record no gradient, so operands that are
    differentiated do not fit; nor do tensors of other types than :class:`torch.Tensor` and parameters. Kernels in
    :data:`SLOWER` and :data:`SLOWER_THAN_OWN` are taken only where ``VOGN_KERNELS=triton`` asks for them.

    Args:
        op: a key of :data:`TABLE` with a kernel.
        tensors: the operands; on one device where they fit.
        limit: why the kernel cannot take sizes like these; empty if it can.
        slower: whether Triton's kernel is known to be the slower one at these sizes: it is taken only if asked for.

    Raises:
        ValueError: if :data:`VARIABLE` has an unknown value.
        MissingExtraError: if it forces Triton, which is not installed.
    """
    forced, first = _forced(), tensors[0]
    if forced == "reference":
        return None
    if forced:
        _require_installed()
    if "native" in TABLE[op] and not (forced and _interpreted()) and native.fit(*tensors):
        return TABLE[op]["native"]
    if "triton" not in TABLE[op] or not (forced or first.is_cuda):
        return None
    if not forced and (slower or op in SLOWER | SLOWER_THAN_OWN or not installed()):
        return None
    if limit or not (first.is_cuda or (first.device.type == "cpu" and _interpreted())):
        return None
    recording = torch.is_grad_enabled()
    fits = all(
        x.dtype in DTYPES
        and x.device == first.device
        and type(x) in (Tensor, torch.nn.Parameter)
        and not (recording and x.requires_grad)
        for x in tensors
    )
    return TABLE[op]["triton"] if fits else None


def _forced() -> str:
    """What :data:`VARIABLE` says, checked."""
    forced = os.environ.get(VARIABLE, "")
    if forced not in ("", "triton", "reference"):
        raise ValueError(f"{VARIABLE}={forced!r} is unknown; use 'triton' or 'reference', or unset it")
    return forced


def _require_installed() -> None:
    if not installed():
        raise MissingExtraError(
            f"{VARIABLE}=triton, but triton is not installed: pip install 'vogn[gpu]', or set {VARIABLE}=reference"
        )


@cache
def installed() -> bool:
    """Whether triton can be imported."""
    return find_spec("triton") is not None


def _interpreted() -> bool:
    return bool(import_module("vogn.kernels.gpu.language").interpreted())
