"""Pictures of a run, written as PNG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vogn.cli.evaluation import Evaluation
from vogn.cli.run_folder import write_atomically
from vogn.metrics import reliability
from vogn.optim.range_test import RangeTest

_METRICS = {"loss": "negative log-likelihood (nats)", "accuracy": "accuracy"}


def plot_learning_curves(histories: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Loss and accuracy over epochs, training dashed and validation solid.

    Args:
        histories: label to rows of ``metrics.jsonl``.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    for axes, (metric, title) in zip(figure.subplots(1, 2), _METRICS.items(), strict=True):
        for number, (label, rows) in enumerate(histories.items()):
            epochs = [row["epoch"] for row in rows]
            for part, style in (("train", "--"), ("validation", "-")):
                if rows and f"{part}_{metric}" in rows[0]:
                    values = [row[f"{part}_{metric}"] for row in rows]
                    axes.plot(epochs, values, style, color=f"C{number}", label=f"{label}: {part}")
        axes.set(xlabel="epoch", ylabel=title)
        if metric == "loss":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=len(histories), loc="outside upper center")
    _save(figure, path)


def plot_reliability(rows: Sequence[Evaluation], path: Path) -> None:
    """Accuracy against confidence, with the number of predictions per bin below.

    Args:
        rows: evaluations on the same examples.
        path: the PNG file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 6.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot([0, 1], [0, 1], color="grey", linewidth=1)
    for number, row in enumerate(rows):
        bins = reliability(row.probabilities, row.targets)
        filled = bins.count > 0
        label = f"{row.label}, {row.how} (ECE {row.scores.ece:.3f})"
        upper.plot(bins.confidence[filled], bins.accuracy[filled], "o-", color=f"C{number}", markersize=4, label=label)
        centres = 0.5 * (bins.edges[1:] + bins.edges[:-1])
        lower.step(centres, torch.clamp(bins.count, min=0), where="mid", color=f"C{number}")
    upper.set(ylabel="accuracy", xlim=(0, 1), ylim=(0, 1.02))
    upper.grid(alpha=0.3)
    lower.set(xlabel="confidence", ylabel="predictions", yscale="symlog")
    lower.set_ylim(bottom=0)
    lower.margins(y=0.2)
    figure.legend(fontsize=8, loc="outside upper left")
    _save(figure, path)


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
    axes.set(xscale="log", xlabel="learning rate", ylabel=_METRICS["loss"])
    axes.set_ylim(min(low, min(found.losses)), high + 0.5 * (high - low))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
