"""Learning-rate schedules: pure functions of the step, so that a checkpoint needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(step: int, total: int, warmup: int) -> float:
    """Linear warm-up to 1, then half a cosine down to 0 after the last step.

    Args:
        step: from 0.
        total: number of steps of the run.
        warmup: number of steps of the warm-up.

    Returns:
        The factor on the peak learning rate, in (0, 1].
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def constant(step: int, total: int, warmup: int) -> float:
    """Linear warm-up to 1, then 1; the arguments are those of :func:`cosine`."""
    return min(1.0, (step + 1) / (warmup + 1))


SCHEDULES: dict[str, Callable[[int, int, int], float]] = {"cosine": cosine, "constant": constant}
"""Name to schedule."""
