"""Predictions that are withheld, inputs that are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from vogn.metrics import auroc, risk_coverage
from vogn.plots.axes import array, axes_or_new


def risk_coverage_curve(
    probabilities: Tensor,
    targets: Tensor,
    uncertainty: Tensor | None = None,
    *,
    label: str | None = None,
    color: Any = None,
    ax: Any = None,
) -> Any:
    """Error rate of the most certain predictions against the fraction that is kept.

    Args:
        probabilities, targets, uncertainty: see :func:`vogn.metrics.risk_coverage`.
        label: for a legend; the area under the curve is added to it.
        color: of matplotlib; ``None`` takes the next of the cycle.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: see :func:`vogn.metrics.risk_coverage`.
    """
    points = risk_coverage(probabilities, targets, uncertainty)
    ax = axes_or_new(ax)
    area = f"AURC {float(points.risk.mean()):.4f}"
    label = area if label is None else f"{label} ({area})"
    ax.plot(array(points.coverage), array(points.risk), color=color, label=label)
    ax.set(xlabel="fraction of predictions kept", ylabel="error rate among them", xlim=(0, 1))
    ax.set_ylim(bottom=0)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax


def ood_histogram(
    inside: Tensor,
    outside: Tensor,
    *,
    score: str = "score",
    labels: tuple[str, str] = ("inside", "outside"),
    bins: int = 40,
    ax: Any = None,
) -> Any:
    """Densities of a score for inputs like the training data and for others, on common bins.

    Args:
        inside, outside: scores, any shape, larger means farther; see :func:`vogn.metrics.auroc`.
        score: name of the score, for the axis.
        labels: of the two kinds of inputs.
        bins: number of bins, >= 1.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: for no scores, scores that are not finite, or ``bins < 1``.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}; at least one bin is needed")
    area = float(auroc(inside, outside))
    ax = axes_or_new(ax)
    values = array(inside), array(outside)
    edges = np.histogram_bin_edges(np.concatenate(values), bins)
    for each, label in zip(values, labels, strict=True):
        ax.hist(each, edges, density=True, alpha=0.5, label=label)
    ax.set(xlabel=score, ylabel="density", title=f"AUROC {area:.3f}")
    ax.legend(fontsize=8)
    return ax


def ood_roc_curve(
    inside: Tensor, outside: Tensor, *, label: str | None = None, color: Any = None, ax: Any = None
) -> Any:
    """Share of inputs from outside that are found, against the share from inside that are refused with them.

    Args:
        inside, outside: scores, any shape, larger means farther; see :func:`vogn.metrics.auroc`.
        label: for a legend; the area under the curve is added to it.
        color: of matplotlib; ``None`` takes the next of the cycle.
        ax: matplotlib axes to draw on; ``None`` makes a figure.

    Returns:
        The axes.

    Raises:
        ValueError: for no scores, or scores that are not finite.
    """
    from sklearn.metrics import roc_curve

    area = f"AUROC {float(auroc(inside, outside)):.3f}"
    a, b = array(inside), array(outside)
    refused, found, _ = roc_curve(np.concatenate([np.zeros(len(a)), np.ones(len(b))]), np.concatenate([a, b]))
    ax = axes_or_new(ax, (4.5, 4.5))
    if not any(line.get_gid() == "diagonal" for line in ax.lines):
        ax.plot([0, 1], [0, 1], color="grey", linewidth=1, gid="diagonal")
    ax.plot(refused, found, color=color, label=area if label is None else f"{label} ({area})")
    ax.set(xlabel="inside, refused", ylabel="outside, found", xlim=(0, 1), ylim=(0, 1.01))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
    return ax
