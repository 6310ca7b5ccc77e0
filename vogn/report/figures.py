"""Measurements and learning curves as pictures."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vogn.metrics import ClassificationReport, gaussian_mixture_pit, gaussian_pit, reliability
from vogn.plots import (
    confidence_histogram,
    learning_curves,
    ood_histogram,
    ood_roc_curve,
    quantile_diagram,
    regression_intervals,
    reliability_diagram,
    risk_coverage_curve,
    severity_curves,
)
from vogn.predict import Predictive
from vogn.report.measuring import Measurements, Outside
from vogn.report.shift import LEVELS, ShiftFigures

_SHOWN_SCORES = ("mutual_information", "entropy", "max_probability", "variance")
_MOST_POINTS = 500
_LONGEST_NAME = 24


@dataclass(frozen=True)
class Drawing:
    """One picture.

    Args:
        name: for a file, of letters, digits, ``-`` and ``_``.
        title: what it shows.
        caption: how to read it.
        figure: the :class:`matplotlib.figure.Figure`.
        section: of the page: ``"figures"``, ``"outside 1"``, ``"outside 2"`` ..., ``"shift"`` or ``"training"``.
    """

    name: str
    title: str
    caption: str
    figure: Any
    section: str = "figures"

    def svg(self) -> bytes:
        """As SVG, text drawn as shapes; the same bytes whenever the figure is the same."""
        import matplotlib

        with matplotlib.rc_context({"svg.hashsalt": self.name, "svg.fonttype": "path"}):
            return self._saved(format="svg", metadata={"Date": None})

    def png(self) -> bytes:
        """As PNG."""
        return self._saved(format="png", dpi=120)

    def _saved(self, **options: Any) -> bytes:
        stream = io.BytesIO()
        self.figure.savefig(stream, **options)
        return stream.getvalue()


def drawings(
    measurements: Measurements, histories: Mapping[str, Sequence[Mapping[str, float]]] | None = None
) -> list[Drawing]:
    """Every picture that the measurements have, in the order of the page.

    Args:
        measurements: what was found.
        histories: label to rows of training, see :func:`vogn.plots.learning_curves`.
    """
    found = _real_drawings(measurements) if measurements.real else _label_drawings(measurements)
    for number, each in enumerate(measurements.outside, 1):
        if each.reports:
            found += _outside_drawings(each, measurements.reference, number)
    if measurements.shift is not None:
        found += _shift_drawings(measurements.shift)
    histories = {label: rows for label, rows in (histories or {}).items() if rows}
    if histories:
        figure = learning_curves_figure(histories)
        scale = "; the loss on a logarithmic scale" if figure.axes[0].get_yscale() == "log" else ""
        caption = f"Training dashed, validation solid{scale}."
        found.append(Drawing("learning_curves", "Learning curves", caption, figure, "training"))
    return found


def learning_curves_figure(histories: Mapping[str, Sequence[Mapping[str, float]]]) -> Any:
    """Loss and accuracy or RMSE over epochs, side by side; only those that the rows have.

    The loss of real targets depends on their unit, so its scale is not logarithmic.
    """
    figure = _new((10, 4))
    there = {name for rows in histories.values() for row in rows for name in row}
    metrics = [
        metric
        for metric in ("loss", "accuracy", "rmse")
        if there & {f"train_{metric}", f"validation_{metric}"} or (not there and metric != "rmse")
    ]
    for axes, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics, strict=True):
        log = False if "rmse" in metrics else None
        learning_curves({_plain(label): rows for label, rows in histories.items()}, metric, log=log, ax=axes)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=8, ncols=max(1, len(histories)), loc="outside upper center")
    return figure


def reliability_figure(rows: Sequence[tuple[str, Tensor, Tensor]]) -> Any:
    """Accuracy against confidence with 95 % intervals, and the number of predictions per bin below.

    Args:
        rows: label, probabilities and targets of every predictor.
    """
    figure = _new((5, 6.5))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for number, (label, probabilities, targets) in enumerate(rows):
        points, color = reliability(probabilities, targets.to(probabilities.device)), f"C{number}"
        filled = points.count > 0
        gaps = (points.accuracy[filled] - points.confidence[filled]).abs() * points.count[filled]
        error = float(gaps.sum() / points.count.sum())
        reliability_diagram(points, label=f"{_plain(label)} (ECE {error:.3f})", color=color, ax=upper)
        confidence_histogram(points, color=color, ax=lower)
    upper.set_xlabel("")
    lower.margins(y=0.2)
    figure.legend(fontsize=8, loc="outside upper left")
    return figure


def _label_drawings(measurements: Measurements) -> list[Drawing]:
    rows = [(row.label, row.predictive.mean.cpu(), measurements.targets.cpu()) for row in measurements.rows]
    kept = _new((6, 4.5)).subplots()
    for number, (label, probabilities, targets) in enumerate(rows):
        risk_coverage_curve(probabilities, targets, label=_plain(label), color=f"C{number}", ax=kept)
    return [
        Drawing(
            "reliability",
            "Reliability",
            "Accuracy against confidence in 15 bins with 95 % intervals; a calibrated predictor lies on the diagonal. "
            "Below: how many predictions each bin holds.",
            reliability_figure(rows),
        ),
        Drawing(
            "risk_coverage",
            "Risk and coverage",
            "Error rate of the most certain predictions, for every fraction that is kept; lower is better.",
            kept.figure,
        ),
    ]


def quantiles_figure(rows: Sequence[tuple[str, Predictive]], targets: Tensor) -> Any:
    """Share of targets below predicted quantiles, with the band of a calibrated predictor.

    Args:
        rows: label and predictions of every predictor.
        targets: real ones.
    """
    figure = _new((5, 5.5))
    diagram = figure.subplots()
    for place, (label, predictive) in enumerate(rows):
        quantile_diagram(
            _pit(predictive, targets),
            label=_plain(label),
            color=f"C{place}",
            level=0.95 if place == 0 else None,
            ax=diagram,
        )
    figure.legend(fontsize=8, loc="outside upper left")
    return figure


def intervals_figure(rows: Sequence[tuple[str, Predictive]], targets: Tensor, x: Tensor) -> Any:
    """Predicted mean and interval of 90 %, and the targets, of every predictor side by side; at most 500 examples.

    Args:
        rows: label and predictions of every predictor.
        targets: real ones.
        x: inputs; a single number per example is the horizontal axis, otherwise examples are sorted by the mean.
    """
    figure = _new((6 * len(rows), 4))
    inputs, _ = _axis(x, len(targets))
    count = len(targets)
    first = torch.linspace(0, count - 1, min(count, _MOST_POINTS)).round().long()
    grid = figure.subplots(1, len(rows), squeeze=False, sharey=True)[0]
    y = targets.cpu().reshape(count, -1)[:, 0]
    for axes, (label, predictive) in zip(grid, rows, strict=True):
        ends = predictive.interval(0.9)
        mean, low, high = (t.cpu().reshape(count, -1)[:, 0] for t in (predictive.mean, *ends))
        order = mean.argsort()[first] if inputs is None else inputs.argsort()[first]
        place = torch.arange(len(order), dtype=mean.dtype) if inputs is None else inputs[order]
        regression_intervals(place, mean[order], low[order], high[order], targets=y[order], ax=axes)
        axes.set_title(_plain(label), fontsize=9)
    return figure


def _real_drawings(measurements: Measurements) -> list[Drawing]:
    rows = [(row.label, row.predictive) for row in measurements.rows]
    return [
        Drawing(
            "quantiles",
            "Quantiles",
            "Share of targets below predicted quantiles; the band holds 95 % of what a calibrated predictor shows.",
            quantiles_figure(rows, measurements.targets),
        ),
        Drawing(
            "intervals",
            "Intervals",
            "Predicted mean and interval of 90 %, and the targets (dots)"
            + _axis(measurements.x, measurements.count)[1],
            intervals_figure(rows, measurements.targets, measurements.x),
        ),
    ]


def _pit(predictive: Predictive, targets: Tensor) -> Tensor:
    y = targets.to(predictive.mean.device)
    if predictive.samples is None:
        return gaussian_pit(predictive.mean, predictive.variance, y)
    return gaussian_mixture_pit(predictive.samples, predictive.aleatoric, y)


def _axis(x: Tensor, count: int) -> tuple[Tensor | None, str]:
    """The input if there is one; else ``None``: examples are sorted by the predicted mean."""
    if x.is_floating_point() and x.numel() == count:
        return x.reshape(-1).cpu(), " over the input."
    return None, "; examples sorted by the mean, first output."


def _outside_drawings(outside: Outside, reference: str, number: int) -> list[Drawing]:
    """Histograms of the reference's scores, and the ROC curves of everybody's entropy."""
    label = reference if reference in outside.scores else next(iter(outside.scores))
    shown = [name for name in _SHOWN_SCORES if name in outside.scores[label]]
    histograms = _new((4 * len(shown), 3.5))
    for axes, name in zip(histograms.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        inside, strange = outside.scores[label][name]
        ood_histogram(
            inside, strange, score=name.replace("_", " "), labels=("familiar", _plain(_short(outside.name))), ax=axes
        )
    curves = _new((5, 5)).subplots()
    for place, (who, scores) in enumerate(outside.scores.items()):
        score = "entropy" if "entropy" in scores else next(iter(scores))
        inside, strange = scores[score]
        heading, color = f"{_plain(who)}: {score.replace('_', ' ')}", f"C{2 * place}"
        ood_roc_curve(inside, strange, label=heading, color=color, ax=curves)
        if "mutual_information" in scores:
            pair, color = scores["mutual_information"], f"C{2 * place + 1}"
            ood_roc_curve(*pair, label=f"{_plain(who)}: mutual information", color=color, ax=curves)
    slug = f"{number}_{_slug(outside.name)}"
    return [
        Drawing(
            f"ood_histograms_{slug}",
            f"Scores: {outside.name}",
            f"Scores of {label}; larger means farther from the training data.",
            histograms,
            f"outside {number}",
        ),
        Drawing(
            f"ood_roc_{slug}",
            f"ROC: {outside.name}",
            "Share of the other inputs that are found, against the share of familiar ones that are refused with them.",
            curves.figure,
            f"outside {number}",
        ),
    ]


def _shift_drawings(shift: ShiftFigures) -> list[Drawing]:
    pictures = []
    for name, title in (("accuracy", "accuracy"), ("ece", "ECE"), ("nll", "NLL")):
        figure = _new((4 * len(shift.reports), 3.5))
        grid = figure.subplots(1, len(shift.reports), squeeze=False, sharey=True)[0]
        for axes, corruption in zip(grid, shift.reports, strict=True):
            curves = {_plain(label): shift.curve(corruption, label, name) for label in shift.reports[corruption]}
            bands = None
            if name == "accuracy":
                bands = {_plain(label): _accuracy_band(found) for label, found in shift.reports[corruption].items()}
            severity_curves(curves, title, severities=LEVELS, intervals=bands, ax=axes)
            axes.set_title(corruption.replace("_", " "))
        caption = f"{shift.count} images at severities 0 (as they are) to 5."
        caption += " Bands: 95 % intervals of the accuracy." if name == "accuracy" else ""
        pictures.append(
            Drawing(f"shift_{name}", f"{title[0].upper()}{title[1:]} under corruption", caption, figure, "shift")
        )
    return pictures


def _accuracy_band(reports: Sequence[ClassificationReport]) -> list[tuple[float, float]]:
    """Clopper-Pearson intervals at 95 %."""
    from scipy.stats import binomtest

    found = [binomtest(round(each.accuracy * each.count), each.count).proportion_ci(0.95) for each in reports]
    return [(float(ends.low), float(ends.high)) for ends in found]


def _slug(name: str) -> str:
    """Letters and digits of a name, as file names may hold them."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[-60:] or "other"


def _plain(label: str) -> str:
    """A label of which matplotlib takes no part for a formula."""
    return label.replace("$", r"\$")


def _short(name: str) -> str:
    """The end of a long name, which is what differs between paths; a legend must fit into its axes."""
    return name if len(name) <= _LONGEST_NAME else f"... {name[-_LONGEST_NAME:]}"


def _new(size: tuple[float, float]) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")
