"""Normal numbers that fill space more evenly than independent ones, as a function of (seed, index) like all noise."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from vogn.linalg.noise import generator

MAX_DIMENSION = SobolEngine.MAXDIM
"""Largest dimension of a Sobol sequence in PyTorch."""

_HALF_CELL = 2.0 ** -(SobolEngine.MAXBIT + 1)


def sobol_normal(n: int, dimension: int, *, seed: int, start: int) -> Tensor:
    """Points ``start, ..., start + n - 1`` of a scrambled Sobol sequence, mapped to normal numbers.

    Every point alone is standard normal over seeds; together the points of one seed are spread evenly, best if their
    number is a power of two. The global random state is neither read nor changed.

    Args:
        n: number of points, >= 1.
        dimension: in [1, 21201].
        seed: fixes the scrambling.
        start: index of the first point, >= 0.

    Returns:
        ``(n, dimension)`` in float64 on the CPU. The sequence has 30 bits, so that no number exceeds 6.13.

    Source: Owen (1998), "Scrambling Sobol' and Niederreiter-Xing points"; the engine is PyTorch's.
    """
    source = generator(seed=seed, stream="sobol", step=0, sample=0)
    engine = SobolEngine(dimension, scramble=True, seed=int(torch.randint(1 << 62, (), generator=source)))
    engine.fast_forward(start)
    return torch.special.ndtri(engine.draw(n, dtype=torch.float64) + _HALF_CELL)
