"""What the kernels in C and the one in Triton draw, in integer arithmetic and single operations of PyTorch: slow, and
the same bits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vogn.kernels.philox import MASK, philox

LANES = 64
LOGARITHM = (
    0.07149753, -0.11571201, 0.11661511, -0.12411051, 0.14249936, -0.1666848, 0.20000707, -0.24999989, 0.33333331,
)  # fmt: skip
SINE = (2.71734950e-06, -1.98392027e-04, 8.33332878e-03, -1.66666666e-01)
COSINE = (2.43798804e-05, -1.38866186e-03, 4.16666167e-02, -0.5)
"""Coefficients of polynomials, the highest power first; see ``normal.c``."""


def normal_numbers(count: int, *, seed: int, device: torch.device | str = "cpu") -> Tensor:
    """The first numbers of a stream, ``(count,)``, float32.

    Args:
        count: >= 0.
        seed: in ``[0, 2^64)``.
        device: where they are computed.
    """
    tiles = -(-count // (4 * LANES))
    counters = torch.arange(tiles * LANES, device=device)
    zero = torch.zeros_like(counters)
    words = philox((counters & MASK, counters >> 32, zero, zero), (seed & MASK, seed >> 32))
    lines = [*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])]
    return torch.stack([line.view(tiles, LANES) for line in lines], 1).flatten()[:count].clone()


def fill_normal(out: Tensor, sizes: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Write the first numbers of a stream into each segment of a vector, rounded to its dtype.

    Element ``k`` of a segment is a function of its seed and ``k``, whatever the other segments are.

    Args:
        out: ``(sum of sizes,)``, contiguous.
        sizes: of the segments, which lie one after the other; each >= 0.
        seeds: of their streams, in ``[0, 2^64)``.

    Returns:
        ``out``.

    Source: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3"; Box, Muller (1958).
    """
    for part, seed in zip(out.split(list(sizes)), seeds, strict=True):
        part.copy_(normal_numbers(part.numel(), seed=seed, device=out.device))
    return out


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Horner's rule; every operation is rounded."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _logarithm(u: Tensor) -> Tensor:
    shifted = u.view(torch.int32).long() + (0x3F800000 - 0x3F3504F3)
    exponent = (shifted >> 23) - 127
    f = ((shifted & 0x007FFFFF) + 0x3F3504F3).int().view(torch.float32) - 1.0
    rest = f * f * (f * _polynomial(LOGARITHM, f) - 0.5)
    return exponent.float() * 0.69314718 + (f + rest)


def _box_muller(radii: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
    u = (radii >> 1).float() * 2.0**-31 + 2.0**-33
    radius = (-2.0 * _logarithm(u)).double().sqrt().float()  # torch's own root of floats is not always the nearest
    quadrant = ((angles + 0x20000000) & MASK) >> 30
    rest = (angles - (quadrant << 30)) & MASK
    y = torch.where(rest >= 1 << 31, rest - (1 << 32), rest).float() * 1.4629180792671596e-09
    z = y * y
    sine = y + y * (z * _polynomial(SINE, z))
    cosine = 1.0 + z * _polynomial(COSINE, z)
    odd = (quadrant & 1) == 1
    first, second = torch.where(odd, sine, cosine) * radius, torch.where(odd, cosine, sine) * radius
    negative = (quadrant + 1) & 2, quadrant & 2
    return torch.where(negative[0] == 2, -first, first), torch.where(negative[1] == 2, -second, second)
