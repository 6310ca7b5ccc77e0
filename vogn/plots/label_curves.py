"""Active learning: a metric over the number of labels, with bands over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vogn.plots.axes import axes_or_new

NAMES = {"accuracy": "accuracy", "rmse": "root mean squared error", "nll": "negative log-likelihood (nats per example)"}


def label_curves(
    labels: Sequence[int],
    curves: Mapping[str, Sequence[Sequence[float]]],
    *,
    metric: str = "accuracy",
    level: float | None = None,
    ax: Any = None,
) -> Any:
    """The mean over seeds at every number of labels, with a band of one standard error on both sides.

    Args:
        labels: numbers of labels, ``(T,)``.
        curves: name of a line to one sequence of ``T`` values for every seed; without a band for a single seed.
        metric: of the values; names the axis.
        level: a value that is marked by a horizontal line, such as an accuracy to be reached.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: if there is nothing to draw, or a sequence has another length than ``labels``.
    """
    if not curves or not len(labels) or any(not len(runs) for runs in curves.values()):
        raise ValueError("there are no curves to draw")
    for name, runs in curves.items():
        lengths = {len(values) for values in runs}
        if lengths != {len(labels)}:
            raise ValueError(f"{name!r} has curves of lengths {sorted(lengths)} for {len(labels)} numbers of labels")
    ax = axes_or_new(ax, (6.0, 4.0))
    for number, (name, runs) in enumerate(curves.items()):
        values = np.asarray(runs, dtype=float)
        mean = values.mean(0)
        style = ("-", "--", ":")[number // 10 % 3]
        (line,) = ax.plot(labels, mean, style, label=name)
        if len(values) > 1:
            error = values.std(0, ddof=1) / np.sqrt(len(values))
            ax.fill_between(labels, mean - error, mean + error, color=line.get_color(), alpha=0.2, linewidth=0)
    if level is not None:
        ax.axhline(level, color="grey", linewidth=0.8)
    ax.set(xlabel="labels", ylabel=NAMES.get(metric, metric))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=7, ncols=2)
    return ax
