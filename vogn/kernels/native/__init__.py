"""Kernels in C for the CPU: compiled for the machine at their first use, where there is a compiler.

Everything here has another way to be computed, so that nothing fails without a compiler: :func:`available` tells, and
``VOGN_KERNELS=reference`` switches these kernels off.
"""

from __future__ import annotations

import ctypes
import math
import os
import struct
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vogn.kernels.native.build import library
from vogn.kernels.reference import DiagonalStep, LinearBlock, LinearStep, StepOptions

if TYPE_CHECKING:
    from typing_extensions import Unpack

TILE = 256
"""Numbers that are drawn together; a stream can be entered at their multiples."""
PART = 1 << 17
"""Numbers for which another thread is worth its call."""


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


class StepNumbers(ctypes.Structure):
    """Those of ``vogn_diagonal_step``, in its order."""

    NAMES = (
        "lr", "decay", "forgotten", "weight", "momentum_rate", "weight_decay", "shift", "correction", "radius", "least",
        "factor",
    )  # fmt: skip
    _fields_ = [(name, ctypes.c_float) for name in NAMES]


class BlockPointers(ctypes.Structure):
    """Those of a block in columns, in the order of ``diagonal.c``."""

    NAMES = ("weight", "bias", "curvature", "momentum", "weight_gradient", "bias_gradient", "evidence")
    _fields_ = (*((name, ctypes.c_void_p) for name in NAMES), ("columns", ctypes.c_int64))


Columns = tuple[Tensor, Tensor]
"""A weight and a bias; as ``(rows, columns)`` and ``(rows,)``, they make a block vector ``(rows, columns + 1)``."""


LINEAR_PART = struct.Struct("3P4q6d")
"""A ``linear_part`` of ``diagonal.c``, packed in one call."""


PART_FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_int64)
"""What ``vogn_in_parts`` calls."""


@cache
def shares_threads() -> bool:
    """Whether the library's threads are PyTorch's own: both call the same function to start them."""
    found = library()
    if isinstance(found, str):
        return False
    try:
        ours, torchs = found.GOMP_parallel, ctypes.CDLL(torch._C.__file__).GOMP_parallel
    except (AttributeError, OSError):
        return False
    return ctypes.cast(ours, ctypes.c_void_p).value == ctypes.cast(torchs, ctypes.c_void_p).value


@cache
def _functions() -> Any:
    found = library()
    assert not isinstance(found, str)
    array, count, number, pointer = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.POINTER
    arguments = {
        "vogn_fill_normal": (array, count, ctypes.c_uint64, ctypes.c_uint64),
        "vogn_diagonal_step": (*8 * (array,), count, pointer(StepNumbers), ctypes.c_int),
        "vogn_diagonal_look": (*5 * (array,), count, pointer(StepNumbers), ctypes.c_int),
        "vogn_diagonal_write": (*5 * (array,), count, pointer(StepNumbers), ctypes.c_int),
        "vogn_diagonal_look_columns": (pointer(BlockPointers), count, count, pointer(StepNumbers), ctypes.c_int),
        "vogn_diagonal_write_columns": (pointer(BlockPointers), count, count, pointer(StepNumbers), ctypes.c_int),
        "vogn_linear_step": (ctypes.c_char_p, count, count, count, ctypes.c_int),
        "vogn_displace": (*3 * (array,), count, number, number),
        "vogn_draw": (*5 * (array,), *3 * (count,), ctypes.c_uint64, number, number),
        "vogn_sample": (*5 * (array,), *3 * (count,), ctypes.c_uint64, number, number),
        "vogn_price": (*4 * (array,), count, number, number),
        "vogn_in_parts": (PART_FUNCTION, count),
    }
    for name, types in arguments.items():
        function = getattr(found, name)
        function.argtypes = types
        counts, looks = name.startswith("vogn_diagonal"), name.startswith("vogn_linear")
        function.restype = ctypes.c_int64 if counts else ctypes.c_int if looks else None
    return found


def takes(*tensors: Tensor) -> bool:
    """Whether the kernels can work on these: plain tensors in single precision, contiguous, on the CPU."""
    for x in tensors:
        plain = type(x) is Tensor or type(x) is torch.nn.Parameter
        if not (plain and x.is_cpu and x.dtype == torch.float32 and x.is_contiguous()):
            return False
    return True


def fit(*tensors: Tensor) -> bool:
    """Whether the kernels are to work on these: they can, they are available, and nothing is differentiated."""
    recording = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return not recording and takes(*tensors) and available()


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


def fill_normals(out: Tensor, sizes: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """:func:`vogn.kernels.native.oracle.fill_normal`, segment by segment; ``out`` as :func:`takes` says."""
    for part, seed in zip(out.split(list(sizes)), seeds, strict=True):
        fill_normal(part, seed=seed)
    return out


def draw(
    weights: tuple[Tensor, Tensor | None],
    curvature: Tensor,
    displacement: Tensor,
    kept: Tensor,
    *,
    seed: int,
    shift: float,
    scale: float,
) -> None:
    """Move the weights of a block to a sample, with one pass over its numbers.

    ``displacement = noise / sqrt(curvature + shift) * scale`` with the noise of :func:`fill_normal`, ``kept`` is what
    the weights were, and the displacement is added to them. All are float32 and contiguous.

    Args:
        weights: of as many numbers as the curvature; or weight ``(rows, columns)`` and bias ``(rows,)``, which are the
            columns of the block.
        curvature: ``(rows, columns + 1)`` with a bias, else of any shape.
        displacement, kept: written; of the curvature's shape.
        seed: of the stream, in ``[0, 2^64)``.
        shift: of the curvature.
        scale: factor; negative for the mirror image.
    """
    weight, bias = weights
    width = curvature.numel() if bias is None else curvature.shape[-1]
    pointers = [x.data_ptr() for x in (curvature, displacement, kept, weight)] + [
        0 if bias is None else bias.data_ptr()
    ]
    function = _functions().vogn_draw

    def part(first: int, last: int) -> None:
        function(*pointers, width, first, last, seed, shift, scale)

    in_parts(curvature.numel(), part)
    torch.autograd.graph.increment_version(weight if bias is None else (weight, bias))


def sample(
    mean: tuple[Tensor, Tensor | None],
    curvature: Tensor,
    out: tuple[Tensor, Tensor | None],
    *,
    seed: int,
    shift: float,
    scale: float,
) -> None:
    """A weight sample of a block about its mean: ``mean + noise / sqrt(curvature + shift) * scale``.

    Args:
        mean: as the weights of :func:`draw`.
        curvature: see :func:`draw`.
        out: written; of the mean's shapes.
        seed, shift, scale: see :func:`draw`.
    """
    width = curvature.numel() if mean[1] is None else curvature.shape[-1]
    pointers = [0 if tensor is None else tensor.data_ptr() for tensor in (curvature, *mean, *out)]
    function = _functions().vogn_sample

    def part(first: int, last: int) -> None:
        function(*pointers, width, first, last, seed, shift, scale)

    in_parts(curvature.numel(), part)


def displace(noise: Tensor, curvature: Tensor, *, shift: float, ess: float) -> Tensor:
    """``noise / sqrt(ess (curvature + shift))``, written over the noise; both float32 and contiguous, of one shape."""
    _elementwise(_functions().vogn_displace, (noise, curvature, noise), shift, ess**-0.5)
    return noise


def price(
    displacement: Tensor,
    curvature: Tensor,
    response: Tensor,
    *,
    shift: float,
    ess: float,
    out: Tensor | None = None,
) -> Tensor:
    """``displacement ess (curvature + shift) response``; all float32 and contiguous, of one shape.

    ``out`` may be one of them.
    """
    out = torch.empty_like(response) if out is None else out
    _elementwise(_functions().vogn_price, (displacement, curvature, response, out), shift, ess)
    return out


def diagonal_step(
    mean: Tensor,
    curvature: Tensor,
    momentum: Tensor,
    gradient: Tensor,
    evidence: Tensor,
    *,
    later: bool = False,
    factor: float = 1.0,
    **options: Unpack[StepOptions],
) -> DiagonalStep:
    """See :func:`vogn.kernels.diagonal_step`; it draws no sample.

    Args:
        mean, curvature, momentum, gradient, evidence: operands.
        later: only look whether the result is finite. If it is, mean, curvature and momentum are the operands, which
            hold the result once its ``write`` has been called: no new memory. Those three must not overlap.
        factor: of the evidence.
        **options: its numbers.

    Raises:
        ValueError: if a sample is wanted.
    """
    operands, functions = (mean, curvature, momentum, gradient, evidence), _functions()
    given = _step_numbers(factor, options)
    if later:
        finite, clipped = _found(_elementwise(functions.vogn_diagonal_look, operands, *given), options)

        def write() -> None:
            _elementwise(functions.vogn_diagonal_write, operands, *given)
            torch.autograd.graph.increment_version(operands[:3])

        if finite:
            return DiagonalStep(curvature, momentum, mean, None, finite=True, write=write, clipped=clipped)
    new = [torch.empty_like(x) for x in operands[:3]]
    finite, clipped = _found(_elementwise(functions.vogn_diagonal_step, (*operands, *new), *given), options)
    return DiagonalStep(new[1], new[2], new[0], None, finite=finite, clipped=clipped)


def diagonal_step_in_columns(
    mean: Columns,
    curvature: Tensor,
    momentum: Tensor,
    gradient: Columns,
    evidence: Tensor,
    *,
    factor: float = 1.0,
    **options: Unpack[StepOptions],
) -> tuple[Callable[[], None], Tensor | None] | None:
    """:func:`diagonal_step` with ``later`` for a mean and a gradient that are not packed.

    Returns:
        What writes the result over mean, curvature and momentum, and :attr:`DiagonalStep.clipped`; ``None`` if the
        result is not finite.

    Raises:
        ValueError: if a sample is wanted.
    """
    parts = (*mean, curvature, momentum, *gradient, evidence)
    rows = mean[1].numel()
    columns = mean[0].numel() // rows
    pointers = BlockPointers(*(x.data_ptr() for x in parts), columns)
    numbers, functions = _step_numbers(factor, options), _functions()

    def over_rows(function: Any) -> list[int]:
        found: list[int] = []

        def part(first: int, last: int) -> None:
            found.append(function(ctypes.byref(pointers), first, last, *numbers))

        in_parts(rows, part, least=-(-PART // (columns + 1)), step=1)
        return found

    def write() -> None:
        over_rows(functions.vogn_diagonal_write_columns)
        torch.autograd.graph.increment_version((*mean, curvature, momentum))

    finite, clipped = _found(over_rows(functions.vogn_diagonal_look_columns), options)
    return (write, clipped) if finite else None


def _found(counts: Sequence[int], options: StepOptions) -> tuple[bool, Tensor | None]:
    """What all parts have found together: whether everything is finite, and :attr:`DiagonalStep.clipped`."""
    clipped = sum(count if count >= 0 else -1 - count for count in counts)
    return min(counts) >= 0, torch.tensor(clipped) if math.isfinite(options["clip_radius"]) else None


def _step_numbers(factor: float, options: StepOptions) -> tuple[Any, int]:
    """The last arguments of the functions in C."""
    if options["ess"] is not None:
        raise ValueError("the CPU's kernel draws no sample")
    prior = options["weight_decay"]
    numbers = StepNumbers(
        lr=options["lr"],
        decay=options["decay"],
        forgotten=1.0 - options["decay"],
        weight=options["weight"],
        momentum_rate=options["momentum_rate"],
        weight_decay=prior,
        shift=prior + options["damping"],
        correction=options["correction"],
        radius=options["clip_radius"],
        least=(4.0 * torch.finfo(torch.float32).eps - 1.0) * prior,
        factor=factor,
    )
    kind = int(options["retract"]) + 2 * int(options["prior_in_momentum"]) + 4 * int(options["root"])
    return ctypes.byref(numbers), kind


def linear_step(blocks: Sequence[LinearBlock]) -> LinearStep:
    """See :func:`vogn.kernels.reference.linear_step`; all tensors as :func:`takes` says.

    It only looks whether the result is finite. If it is, parameters and momenta are the operands, which hold the result
    once :attr:`LinearStep.write` has been called: no new memory.
    """
    parts = _linear_parts(blocks)
    if not _over_linear_parts(*parts, write=False):
        copies = [
            block._replace(
                means=[mean.detach().clone() for mean in block.means],
                momentum=None if block.momentum is None else block.momentum.clone(),
            )
            for block in blocks
        ]
        _over_linear_parts(*_linear_parts(copies), write=True)
        return LinearStep([(copy.means, copy.momentum) for copy in copies], finite=False)

    def write() -> None:
        _over_linear_parts(*parts, write=True)
        written = [*chain.from_iterable(block.means for block in blocks), *(block.momentum for block in blocks)]
        torch.autograd.graph.increment_version([tensor for tensor in written if tensor is not None])

    return LinearStep([(block.means, block.momentum) for block in blocks], finite=True, write=write)


def _linear_parts(blocks: Sequence[LinearBlock]) -> tuple[bytes, int]:
    """The parameters of the blocks for ``vogn_linear_step``, and how many numbers they have."""
    found, total = [], 0
    for means, gradients, momentum, places, lr, rate, entering, leaving in blocks:
        average = 0 if momentum is None else momentum.data_ptr()
        for mean, gradient, (start, rows, stride) in zip(means, gradients, places, strict=True):
            count, ends = mean.numel(), (mean.data_ptr(), gradient.data_ptr(), average)
            found.append(LINEAR_PART.pack(*ends, count, start, count // rows, stride, lr, rate, *entering, *leaving))
            total += count
    return b"".join(found), total


def _over_linear_parts(parts: bytes, total: int, *, write: bool) -> bool:
    """Whether the result is finite; with ``write`` it is written over what it is computed from."""
    step, number = _functions().vogn_linear_step, len(parts) // LINEAR_PART.size
    finite: list[int] = []

    def part(first: int, last: int) -> None:
        finite.append(step(parts, number, first, last, write))

    in_parts(total, part)
    return all(finite)


def _elementwise(function: Any, tensors: tuple[Tensor, ...], *numbers: Any) -> list[Any]:
    """What ``function(pointers, count, numbers)`` returns for every part, the tensors cut alike."""
    starts = [tensor.data_ptr() for tensor in tensors]
    found: list[Any] = []

    def part(first: int, last: int) -> None:
        found.append(function(*(start + 4 * first for start in starts), last - first, *numbers))

    in_parts(tensors[0].numel(), part)
    return found


def in_parts(count: int, part: Any, *, least: int | None = None, step: int = TILE) -> None:
    """Call ``part(first, last)`` for ranges that begin at multiples of ``step``, each in one of torch's threads.

    They are as many as torch uses, fewer for ranges shorter than ``least`` (:data:`PART`); one where threads would be
    others than torch's, which keep the processors busy for a while after their work.
    """
    most = count // (PART if least is None else least)
    threads = min(torch.get_num_threads(), most) if most > 1 and shares_threads() else 1
    if threads == 1:
        part(0, count)
        return
    ends = [count * k // threads // step * step for k in range(threads)] + [count]
    errors: list[BaseException] = []

    def run(k: int) -> None:
        try:
            part(ends[k], ends[k + 1])
        except BaseException as error:  # noqa: BLE001 - C would go on without it
            errors.append(error)

    _functions().vogn_in_parts(PART_FUNCTION(run), threads)
    if errors:
        raise errors[0]
