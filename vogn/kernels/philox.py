"""Counter-based normal numbers in plain integer arithmetic: the same ones that Triton's ``tl.randn`` draws."""

from __future__ import annotations

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
UNIFORM_SCALE = 4.6566127342e-10
"""A little under ``2^-31``, so that the largest integer stays below 1 in single precision."""
SMALLEST_UNIFORM = 1e-7
"""Below it the logarithm is cut: no normal number is beyond ``sqrt(-2 log 1e-7) = 5.68``."""


Words = tuple[Tensor, Tensor, Tensor, Tensor]


def philox(counter: Words, key: tuple[int, int], rounds: int = 10) -> Words:
    """Philox 4x32: four random words for every counter.

    Args:
        counter: four words in ``[0, 2^32)``, held in int64, of one shape.
        key: two words in ``[0, 2^32)``.
        rounds: rounds of the bijection, >= 1.

    Returns:
        Four words in ``[0, 2^32)``, int64, of the counters' shape.

    Source: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", section 4.2.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(rounds):
        high0, low0 = _product(c0, MULTIPLIERS[0])
        high1, low1 = _product(c2, MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + KEY_STEPS[0]) & MASK, (k1 + KEY_STEPS[1]) & MASK
    return c0, c1, c2, c3


def normal(count: int, *, seed: int, offset: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers of the counters ``offset, ..., offset + count - 1``.

    Args:
        count: how many, >= 0.
        seed: the key, in ``[0, 2^63)``.
        offset: the first counter, in ``[0, 2^63 - count]``: draws at disjoint counters are independent.
        device: where the numbers are wanted.

    Returns:
        ``(count,)``, float32.

    Source: Box, Muller (1958), of the first two words of every counter.
    """
    counters = torch.arange(offset, offset + count, dtype=torch.int64, device=device)
    zero = torch.zeros_like(counters)
    words = philox((counters & MASK, counters >> 32, zero, zero), (seed & MASK, seed >> 32))
    radius, angle = _uniform(words[0]), _uniform(words[1])
    return (-2.0 * radius.clamp_min(SMALLEST_UNIFORM).log()).sqrt() * (6.283185307179586 * angle).cos()


def _product(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low word of ``word * multiplier``, from halves of ``word``: no int64 overflows."""
    low = multiplier * (word & 0xFFFF)
    high = multiplier * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def _uniform(word: Tensor) -> Tensor:
    """In ``[0, 1)``: a word read as a signed integer, negative ones complemented."""
    return torch.where(word >= 1 << 31, MASK - word, word).float() * UNIFORM_SCALE
