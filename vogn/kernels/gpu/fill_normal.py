"""Normal numbers of many streams in one launch: those of the code in C, see ``vogn/kernels/native/normal.c``.

Every operation is a single IEEE one in the order of that file: polynomials in the place of the device's logarithm, sine
and cosine, the root that is rounded to nearest, and no multiply-adds (``enable_fp_fusion=False``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from vogn.kernels.gpu.language import blocks, jit, tl

BLOCK = 256
"""Counters per program, a multiple of 64; each gives four numbers. Not tuned."""
NUMBERS = 4 * BLOCK
TABLES = 64
"""Tuples of sizes whose tables are kept; a table takes four bytes for every :data:`NUMBERS` numbers."""


@jit()
def _pair(radii: tl.tensor, angles: tl.tensor) -> tl.tensor:
    """Two normal numbers from two words."""
    u = (radii >> 1).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10 + 1.1641532182693481e-10
    shifted = u.to(tl.uint32, bitcast=True) + 0x004AFB0D  # 1 - sqrt(1/2), as bits
    exponent = (shifted >> 23).to(tl.int32, bitcast=True) - 127
    f = ((shifted & 0x007FFFFF) + 0x3F3504F3).to(tl.float32, bitcast=True) - 1.0
    p = f * 0.07149753 - 0.11571201
    p = p * f + 0.11661511
    p = p * f - 0.12411051
    p = p * f + 0.14249936
    p = p * f - 0.1666848
    p = p * f + 0.20000707
    p = p * f - 0.24999989
    p = p * f + 0.33333331
    rest = f * f * (f * p - 0.5)
    logarithm = exponent.to(tl.float32) * 0.69314718 + (f + rest)
    radius = tl.sqrt_rn(logarithm * -2.0)
    quadrant = (angles + 0x20000000) >> 30
    y = (angles - (quadrant << 30)).to(tl.int32, bitcast=True).to(tl.float32) * 1.4629180792671596e-09
    z = y * y
    s = z * 2.71734950e-06 - 1.98392027e-04
    s = s * z + 8.33332878e-03
    s = s * z - 1.66666666e-01
    s = y + y * (z * s)
    c = z * 2.43798804e-05 - 1.38866186e-03
    c = c * z + 4.16666167e-02
    c = c * z - 0.5
    c = z * c + 1.0
    odd = (quadrant & 1) == 1
    cosine, sine = tl.where(odd, s, c) * radius, tl.where(odd, c, s) * radius
    cosine = tl.where(((quadrant + 1) & 2) == 2, -cosine, cosine)
    return cosine, tl.where((quadrant & 2) == 2, -sine, sine)


@jit(keep_general=("size", "seed"))
def _kernel(
    out: tl.tensor,
    size: tl.tensor,
    seed: tl.tensor,
    programs: tl.tensor,
    segments: tl.tensor,
    seeds: tl.tensor,
    ALONE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Numbers ``NUMBERS p, ..., NUMBERS (p + 1) - 1`` of a segment, whose ``p``-th program this is."""
    program = tl.program_id(0).to(tl.int64)
    if not ALONE:
        segment = tl.load(programs + program).to(tl.int64)
        out += tl.load(segments + 3 * segment)
        size = tl.load(segments + 3 * segment + 1)
        program -= tl.load(segments + 3 * segment + 2)
        seed = tl.load(seeds + segment)
    lane = tl.arange(0, BLOCK)
    counter = program * BLOCK + lane
    low, high = counter.to(tl.uint32), (counter >> 32).to(tl.uint32)
    zero = low * 0
    a, b, c, d = tl.philox(seed, low, high, zero, zero)
    first, second = _pair(a, b)
    third, fourth = _pair(c, d)
    k = program * (4 * BLOCK) + (lane // 64) * 256 + lane % 64
    tl.store(out + k, first.to(out.dtype.element_ty), mask=k < size)
    tl.store(out + k + 64, second.to(out.dtype.element_ty), mask=k + 64 < size)
    tl.store(out + k + 128, third.to(out.dtype.element_ty), mask=k + 128 < size)
    tl.store(out + k + 192, fourth.to(out.dtype.element_ty), mask=k + 192 < size)


@lru_cache(maxsize=TABLES)
def _tables(sizes: tuple[int, ...], device: torch.device, stream: int) -> tuple[Tensor, Tensor]:
    """Segment of every program; start, size and first program of every segment ``(S, 3)``.

    Kept for each stream: they are written, read and given back in its order, so that nobody waits.
    """
    counts = torch.tensor([blocks(size, NUMBERS) for size in sizes], device="cpu")
    lengths = torch.tensor(sizes, device="cpu")
    programs = torch.arange(len(sizes), dtype=torch.int32, device="cpu").repeat_interleave(counts)
    segments = torch.stack([lengths.cumsum(0) - lengths, lengths, counts.cumsum(0) - counts], 1)
    return _sent(programs, device), _sent(segments, device)


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """On the device, without waiting for it: the memory that is copied from is not used again before that is done."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x


def fill_normal(out: Tensor, sizes: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """See :func:`vogn.kernels.native.oracle.fill_normal`; one launch, which depends on nothing that is on the device.

    One segment needs no tables: its seed is an argument of the launch.
    """
    if not out.numel():
        return out
    signed = [seed - (1 << 64) if seed >> 63 else seed for seed in seeds]
    if len(signed) == 1:
        size, grid, operands = sizes[0], blocks(sizes[0], NUMBERS), (out, out, out)
    else:
        stream = torch.cuda.current_stream(out.device).cuda_stream if out.is_cuda else 0
        programs, segments = _tables(tuple(sizes), out.device, stream)
        on_device = _sent(torch.tensor(signed, dtype=torch.int64, device="cpu"), out.device)
        size, grid, operands = 0, len(programs), (programs, segments, on_device)
    seed = signed[0] if len(signed) == 1 else 0
    _kernel[(grid,)](out, size, seed, *operands, ALONE=len(signed) == 1, BLOCK=BLOCK, enable_fp_fusion=False)
    return out
