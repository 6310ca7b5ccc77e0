"""Accuracy against confidence; observed against expected quantiles."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vogn.metrics import QuantileCalibration, Reliability, quantile_calibration, reliability
from vogn.metrics.inputs import check_level
from vogn.plots.axes import array, axes_or_new


def reliability_diagram(
    probabilities: Tensor | Reliability,
    targets: Tensor | None = None,
    *,
    bins: int = 15,
    level: float | None = 0.95,
    label: str | None = None,
    color: Any = None,
    ax: Any = None,
) -> Any:
    """Accuracy against confidence, bin by bin, with an interval for the accuracy of every bin.

    A calibrated model lies on the diagonal: about ``level`` of the intervals cross it.

    Args:
        probabilities: see :func:`vogn.metrics.accuracy`; or a :class:`vogn.metrics.Reliability`, for example of
            ``ClassificationMeter.reliability``, and no targets.
        targets: labels.
        bins: number of equal-width bins, >= 1.
        level: of the intervals (Clopper-Pearson), in (0, 1); ``None`` draws none.
        label: for a legend.
        color: of matplotlib; ``None`` takes the next of the cycle.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: see :func:`vogn.metrics.reliability`; for probabilities without targets; for a level out of range.
    """
    points = _points(probabilities, targets, bins)
    ax = axes_or_new(ax, (4.5, 4.5))
    confidence, accuracy = array(points.confidence), array(points.accuracy)
    filled = array(points.count) > 0
    if not any(line.get_gid() == "diagonal" for line in ax.lines):
        ax.plot([0, 1], [0, 1], color="grey", linewidth=1, gid="diagonal")
    (line,) = ax.plot(confidence[filled], accuracy[filled], "o-", color=color, markersize=4, label=label)
    if level is not None:
        low, high = (array(end) for end in points.interval(level))
        ax.fill_between(confidence[filled], low[filled], high[filled], color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    ax.grid(alpha=0.3)
    return ax


def confidence_histogram(
    probabilities: Tensor | Reliability,
    targets: Tensor | None = None,
    *,
    bins: int = 15,
    color: Any = None,
    ax: Any = None,
) -> Any:
    """Number of predictions in each bin of confidence, on a scale that shows single ones beside thousands.

    Args, Returns, Raises: see :func:`reliability_diagram`.
    """
    points = _points(probabilities, targets, bins)
    ax = axes_or_new(ax, (4.5, 2.0))
    ax.stairs(array(points.count), array(points.edges), color="C0" if color is None else color)
    ax.set(xlabel="confidence", ylabel="predictions", yscale="symlog", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    return ax


def quantile_diagram(
    pit: Tensor | QuantileCalibration,
    *,
    levels: int = 99,
    level: float | None = 0.95,
    label: str | None = None,
    color: Any = None,
    ax: Any = None,
) -> Any:
    """Share of targets below predicted quantiles, against the probability of the quantile.

    Too narrow predictions are above the diagonal on the left and below it on the right. The band is where each point
    of a calibrated model lies with probability ``level``.

    Args:
        pit: transforms of the targets, for example of :func:`vogn.metrics.gaussian_pit`; or what
            :func:`vogn.metrics.quantile_calibration` made of them.
        levels: number of quantiles, >= 1.
        level: of the band, in (0, 1); ``None`` draws none.
        label, color, ax: see :func:`reliability_diagram`.

    Returns:
        The axes.

    Raises:
        ValueError: see :func:`vogn.metrics.quantile_calibration`; for a level out of range.
    """
    points = pit if isinstance(pit, QuantileCalibration) else quantile_calibration(pit, levels)
    ax = axes_or_new(ax, (4.5, 4.5))
    expected, observed = array(points.levels), array(points.observed)
    if not any(line.get_gid() == "diagonal" for line in ax.lines):
        ax.plot([0, 1], [0, 1], color="grey", linewidth=1, gid="diagonal")
    if level is not None:
        from scipy.stats import binom

        check_level(level)
        low, high = (end / points.count for end in binom.interval(level, points.count, expected))
        ax.fill_between(expected, low, high, color="grey", alpha=0.2, linewidth=0)
    ax.plot(expected, observed, color=color, label=label)
    ax.set(xlabel="probability of the quantile", ylabel="share of targets below", xlim=(0, 1), ylim=(0, 1))
    ax.grid(alpha=0.3)
    return ax


def _points(probabilities: Tensor | Reliability, targets: Tensor | None, bins: int) -> Reliability:
    if isinstance(probabilities, Reliability):
        return probabilities
    if targets is None:
        raise ValueError("probabilities need targets= beside them")
    return reliability(probabilities, targets, bins)
