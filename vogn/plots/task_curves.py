"""Continual learning: average accuracy over the tasks so far, and the matrix of all accuracies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vogn.plots.axes import axes_or_new


def task_curves(
    averages: Mapping[str, Sequence[float]],
    *,
    intervals: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ax: Any = None,
) -> Any:
    """The average accuracy over the tasks so far, after every task; a line for each method.

    Args:
        averages: label to one value for every task, for example ``ContinualResult.averages``.
        intervals: label to ``[low, high]`` for every task, drawn as bands.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: if there is nothing to draw, or numbers of tasks differ.
    """
    bands = intervals or {}
    lengths = {len(values) for values in (*averages.values(), *bands.values())}
    if not averages or lengths == {0}:
        raise ValueError("there are no averages to draw")
    if len(lengths) > 1:
        raise ValueError(f"the lines have different numbers of tasks: {sorted(lengths)}")
    ax = axes_or_new(ax, (6.0, 4.0))
    numbers = np.arange(1, lengths.pop() + 1)
    for number, (label, values) in enumerate(averages.items()):
        style = ("-", "--", ":")[number // 10 % 3]
        (line,) = ax.plot(numbers, list(values), style, marker="o", markersize=3, label=label)
        if label in bands:
            low, high = zip(*bands[label], strict=True)
            ax.fill_between(numbers, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel="tasks trained", ylabel="average accuracy on them", xticks=numbers)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, ncols=2)
    return ax


def accuracy_heatmap(matrix: Sequence[Sequence[float]], *, ax: Any = None) -> Any:
    """The accuracy matrix: a row after every task, a column for every task, in per cent.

    Args:
        matrix: ``R[i][j]``, ``(T, T)``, in [0, 1].
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: if it is not square.
    """
    values = np.asarray(matrix, dtype=float)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or not len(values):
        raise ValueError(f"an accuracy matrix is square, got shape {values.shape}")
    count = len(values)
    ax = axes_or_new(ax, (0.6 * count + 2.0, 0.6 * count + 1.2))
    ax.imshow(values, vmin=0.0, vmax=1.0, cmap="viridis")
    for i in range(count) if count <= 12 else ():
        for j in range(count):
            color = "black" if values[i, j] > 0.6 else "white"
            ax.text(j, i, f"{100 * values[i, j]:.0f}", ha="center", va="center", color=color, fontsize=8)
    labels = [str(k + 1) for k in range(count)]
    ax.set_xticks(range(count), labels)
    ax.set_yticks(range(count), labels)
    ax.set(xlabel="tested on task", ylabel="after task")
    return ax
