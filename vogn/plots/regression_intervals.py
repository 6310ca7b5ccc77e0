"""Predicted intervals of real targets."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vogn.metrics.inputs import real_pair
from vogn.plots.axes import array, axes_or_new


def regression_intervals(
    x: Tensor,
    mean: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    targets: Tensor | None = None,
    label: str | None = None,
    color: Any = None,
    ax: Any = None,
) -> Any:
    """Mean and interval over one input, or over whatever is on the horizontal axis.

    Args:
        x: where the predictions stand, ``(N,)`` or ``(N, 1)``, in any order.
        mean: predictive mean, the same number of elements.
        low, high: ends of the intervals, for example of ``Predictive.interval``, likewise.
        targets: observations at ``x``, or ``None``.
        label: of the mean, for a legend.
        color: of matplotlib; ``None`` takes the next of the cycle.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: for different numbers of elements, non-finite values or an empty batch.
    """
    place = x.reshape(-1)
    named = {"mean": mean, "low": low, "high": high} | ({} if targets is None else {"targets": targets})
    for name, values in named.items():
        real_pair(values.reshape(-1), place, name="x", mean_name=name)
    order = place.argsort()
    ax = axes_or_new(ax, (6.0, 4.0))
    at, middle, lower, upper = (array(values.reshape(-1)[order]) for values in (place, mean, low, high))
    (line,) = ax.plot(at, middle, color=color, label=label)
    ax.fill_between(at, lower, upper, color=line.get_color(), alpha=0.2, linewidth=0)
    if targets is not None:
        ax.plot(array(place), array(targets), ".", color="black", markersize=3)
    ax.grid(alpha=0.3)
    return ax
