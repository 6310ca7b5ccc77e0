"""Pictures of a run, written as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vogn.active import ActiveResult
from vogn.cli.run_folder import write_atomically
from vogn.continual import ContinualResult
from vogn.optim.range_test import RangeTest
from vogn.plots import accuracy_heatmap, label_curves, reward_curves, task_curves
from vogn.plots.curves import METRIC_NAMES
from vogn.report.figures import learning_curves_figure


def plot_learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Loss and accuracy (or RMSE) over epochs, training dashed and validation solid.

    Args:
        histories: label to rows of ``metrics.jsonl``.
        path: the PNG file.
    """
    save_figure(learning_curves_figure(histories), path)


def plot_tasks(results: Mapping[str, ContinualResult], folder: Path) -> None:
    """``average_accuracy.png`` of all methods and ``accuracy_matrix_NAME.png`` of each."""
    curves = task_curves({name: result.averages for name, result in results.items()})
    save_figure(curves.figure, folder / "average_accuracy.png")
    for name, result in results.items():
        axes = accuracy_heatmap(result.matrix)
        axes.set_title(name, fontsize=9)
        save_figure(axes.figure, folder / f"accuracy_matrix_{name}.png")


def plot_labels(results: Mapping[str, Sequence[ActiveResult]], metric: str, level: float | None, folder: Path) -> None:
    """``METRIC.png``: the metric over the labels, with bands over seeds."""
    labels = next(iter(results.values()))[0].labels
    curves = {name: [run.curve(metric) for run in runs] for name, runs in results.items()}
    save_figure(label_curves(labels, curves, metric=metric, level=level).figure, folder / f"{metric}.png")


def plot_rewards(
    curves: Mapping[str, Sequence[Sequence[float]]], path: Path, *, xlabel: str, ylabel: str, window: int = 1
) -> None:
    """Returns or regret of all agents."""
    if any(len(points) for points in curves.values()):
        save_figure(reward_curves(curves, xlabel=xlabel, ylabel=ylabel, window=window).figure, path)


def plot_range_test(found: RangeTest, path: Path) -> None:
    """Loss against learning rate: every step, the smoothed curve, the ends of the short runs and the choice.

    Args:
        found: the test.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(found.rates, found.losses, ".", color="grey", markersize=3, label="loss of a step")
    axes.plot(found.rates, found.smoothed, color="C0", label="smoothed")
    ends = [(rate, loss) for rate, loss in found.runs if math.isfinite(loss)]
    if ends:
        axes.plot(*zip(*ends, strict=True), "s", color="C2", markersize=5, label="end of a short run")
    axes.axvline(found.suggestion, color="C1", linewidth=1, label=f"lr {found.suggestion:.2g}")
    low = min(*found.smoothed, *(loss for _, loss in ends))
    high = max(found.smoothed[0], found.losses[0])
    axes.set(xscale="log", xlabel="learning rate", ylabel=METRIC_NAMES["loss"])
    axes.set_ylim(min(low, min(found.losses)), high + 0.5 * (high - low))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Write a figure as PNG, in one step."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
