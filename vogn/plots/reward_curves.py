"""Reinforcement learning: returns over steps, regret over rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vogn.plots.axes import axes_or_new


def reward_curves(
    curves: Mapping[str, Sequence[Sequence[float]]],
    *,
    xlabel: str = "steps",
    ylabel: str = "return",
    window: int = 1,
    ax: Any = None,
) -> Any:
    """A line for each agent, the mean over a window of its points.

    Args:
        curves: label to points ``[x, y, ...]`` in order of ``x``, for example ``RunResult.episodes``; agents without
            points are left out.
        xlabel, ylabel: of the axes.
        window: points of a mean, >= 1; at the beginning it is of those there are.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: if no agent has a point, or the window is out of range.
    """
    if window < 1:
        raise ValueError(f"window={window} must be at least 1")
    if not any(len(points) for points in curves.values()):
        raise ValueError("there are no points to draw")
    ax = axes_or_new(ax, (6.0, 4.0))
    for label, points in curves.items():
        if not len(points):
            continue
        x, y = np.array([point[:2] for point in points], dtype=float).T
        total = np.concatenate([[0.0], np.cumsum(y)])
        last = np.arange(1, len(y) + 1)
        first = np.maximum(0, last - window)
        ax.plot(x, (total[last] - total[first]) / (last - first), label=label)
    ax.set(xlabel=xlabel, ylabel=ylabel if window == 1 else f"{ylabel}, mean of the last {window}")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax
