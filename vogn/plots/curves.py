"""Figures that change: over epochs, over the severity of a corruption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vogn.plots.axes import axes_or_new

METRIC_NAMES: Mapping[str, str] = {
    "loss": "negative log-likelihood (nats)",
    "accuracy": "accuracy",
    "rmse": "RMSE (unit of the targets)",
}
"""What the axis of a metric in the rows of training is called."""


def learning_curves(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    metric: str = "loss",
    *,
    log: bool | None = None,
    ax: Any = None,
) -> Any:
    """A metric over epochs, training dashed and validation solid.

    Args:
        histories: label to rows with ``"epoch"`` and ``"train_<metric>"``, ``"validation_<metric>"`` or both.
        metric: ``"loss"``, ``"accuracy"`` or another of the rows.
        log: whether the scale is logarithmic; ``None``: that of losses, if all are above 0.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: if there are rows, but none has the metric.
    """
    names = [f"{part}_{metric}" for part in ("train", "validation")]
    every = [row for rows in histories.values() for row in rows]
    if every and not any(name in row for row in every for name in names):
        raise ValueError(f"no row has {names[0]} or {names[1]}: there is nothing to draw")
    ax = axes_or_new(ax, (6.0, 4.0))
    for number, (label, rows) in enumerate(histories.items()):
        for part, style in (("train", "--"), ("validation", "-")):
            found = [(row["epoch"], row[f"{part}_{metric}"]) for row in rows if f"{part}_{metric}" in row]
            if found:
                epochs, values = zip(*found, strict=True)
                ax.plot(epochs, values, style, color=f"C{number}", label=f"{label}: {part}")
    ax.set(xlabel="epoch", ylabel=METRIC_NAMES.get(metric, metric))
    if log is None:
        log = metric == "loss" and all(row.get(name, 1.0) > 0 for row in every for name in names)
    if log:
        ax.set_yscale("log")
    ax.grid(alpha=0.3)
    ax.xaxis.get_major_locator().set_params(integer=True)
    return ax


def severity_curves(
    figures: Mapping[str, Sequence[float]],
    metric: str = "accuracy",
    *,
    severities: Sequence[int] = (0, 1, 2, 3, 4, 5),
    intervals: Mapping[str, Sequence[Sequence[float]]] | None = None,
    ax: Any = None,
) -> Any:
    """A metric over the severity of a corruption, a line for each model.

    Args:
        figures: label to one value for each severity.
        metric: name of the metric, for the axis.
        severities: of the values.
        intervals: label to ``[low, high]`` for each severity, for example ``ClassificationReport.intervals``; drawn as
            bands.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: for no lines, numbers of values that differ from that of the severities, or intervals of no line.
    """
    if not figures:
        raise ValueError("there are no figures to draw")
    bands = intervals or {}
    for label, values in (*figures.items(), *bands.items()):
        if len(values) != len(severities):
            raise ValueError(f"{label!r} has {len(values)} values for {len(severities)} severities")
    if unknown := bands.keys() - figures.keys():
        raise ValueError(f"there are intervals of {sorted(unknown)} but no figures")
    ax = axes_or_new(ax)
    for label, values in figures.items():
        (line,) = ax.plot(list(severities), list(values), "o-", markersize=4, label=label)
        if label in bands:
            low, high = zip(*bands[label], strict=True)
            ax.fill_between(list(severities), low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlabel="severity", ylabel=metric, xticks=list(severities))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax
