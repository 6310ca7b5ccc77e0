"""Measurements as tables of text, for a page or a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vogn.report.measuring import Measured, Measurements, Outside
from vogn.report.shift import LEVELS


@dataclass(frozen=True)
class Column:
    """A figure in a table.

    Args:
        name: of the field in the report.
        heading: what stands above it.
        better: ``"higher"``, ``"lower"`` or ``""`` where neither is.
        percent: whether it is shown as a percentage.
        unit: whether it is in the unit of the targets, which may be large or small.
    """

    name: str
    heading: str
    better: str = "lower"
    percent: bool = False
    unit: bool = False

    def text(self, value: float) -> str:
        """The value as text."""
        if self.percent:
            return f"{100 * value:.2f} %"
        return in_unit(value) if self.unit else f"{value:.4f}"


@dataclass(frozen=True)
class Cell:
    """A figure as text.

    Args:
        text: the figure; empty where there is none.
        interval: its interval, or empty.
        best: whether none in its column is better.
    """

    text: str
    interval: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Args:
        headings: above the columns, the first one above the labels.
        rows: a label and its cells.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def in_unit(value: float) -> str:
    """A number in some unit: four decimals, or four digits where that says too little or too much."""
    return f"{value:.4f}" if value == 0 or 0.01 <= abs(value) < 10 else f"{value:#.4g}"


LABEL_COLUMNS = (
    Column("accuracy", "accuracy", "higher", percent=True),
    Column("nll", "NLL"),
    Column("brier", "Brier"),
    Column("ece", "ECE"),
    Column("classwise_ece", "class-wise ECE"),
    Column("adaptive_ece", "adaptive ECE"),
    Column("debiased_ece", "debiased ECE"),
    Column("aurc", "AURC"),
)
REAL_COLUMNS = (
    Column("rmse", "RMSE", unit=True),
    Column("nll", "NLL"),
    Column("crps", "CRPS", unit=True),
    Column("coverage", "coverage", "", percent=True),
    Column("width", "width", "", unit=True),
    Column("interval_score", "interval score", unit=True),
    Column("quantile_calibration_error", "quantile calibration error"),
    Column("sharpness", "sharpness", "", unit=True),
)


def figures_table(measurements: Measurements) -> Table:
    """A row for each predictor."""
    columns = REAL_COLUMNS if measurements.real else LABEL_COLUMNS
    best = {column.name: _best(column, measurements.rows) for column in columns}
    rows = []
    for row in measurements.rows:
        cells = []
        for column in columns:
            value = float(getattr(row.report, column.name))
            ends = row.report.intervals.get(column.name)
            cells.append(
                Cell(
                    column.text(value),
                    "" if ends is None else f"{column.text(ends[0])} to {column.text(ends[1])}",
                    value == best[column.name],
                )
            )
        rows.append((row.label, tuple(cells)))
    headings = [f"{column.heading}\n({column.better})" if column.better else column.heading for column in columns]
    return Table(("predictor", *headings), tuple(rows))


def difference_table(measurements: Measurements) -> Table | None:
    """NLL of every predictor minus that of the reference on the same examples; ``None`` if there is nothing to say."""
    if not measurements.differences:
        return None
    rows = [
        (label, (Cell(f"{value:+.4f}", f"{low:+.4f} to {high:+.4f}"), Cell(_verdict(low, high))))
        for label, (value, low, high) in measurements.differences.items()
    ]
    return Table(("predictor", f"NLL minus that of {measurements.reference}", "so it is"), tuple(rows))


def ood_table(outside: Outside, figure: str = "auroc") -> Table:
    """A row for each predictor, a column for each score.

    Args:
        outside: the other inputs.
        figure: ``"auroc"``, ``"aupr_outside"``, ``"aupr_inside"`` or ``"fpr95"``.
    """
    names = sorted({name for report in outside.reports.values() for name in report.scores})
    values = {
        (label, name): float(getattr(found, figure))
        for label, report in outside.reports.items()
        for name, found in report.scores.items()
    }
    best = (min if figure == "fpr95" else max)(values.values()) if len(outside.reports) > 1 else None
    rows = [(label, tuple(_score_cell(values.get((label, name)), best) for name in names)) for label in outside.reports]
    return Table(("predictor", *(name.replace("_", " ") for name in names)), tuple(rows))


def shift_table(measurements: Measurements, figure: str) -> Table | None:
    """A figure at every severity, the mean over the corruptions; ``None`` if nothing was corrupted.

    Args:
        measurements: what was found.
        figure: a field of :class:`vogn.metrics.ClassificationReport`.
    """
    if measurements.shift is None:
        return None
    column = next(column for column in LABEL_COLUMNS if column.name == figure)
    curves = {row.label: measurements.shift.average(row.label, figure) for row in measurements.rows}
    choose = max if column.better == "higher" else min
    best = [choose(values) if len(curves) > 1 else None for values in zip(*curves.values(), strict=True)]
    rows = [
        (label, tuple(Cell(column.text(value), best=value == top) for value, top in zip(values, best, strict=True)))
        for label, values in curves.items()
    ]
    return Table(("predictor", *(f"severity {level}" for level in LEVELS)), tuple(rows))


def _best(column: Column, rows: Sequence[Measured]) -> float | None:
    if len(rows) < 2 or not column.better:
        return None
    choose = max if column.better == "higher" else min
    return choose(float(getattr(row.report, column.name)) for row in rows)


def _score_cell(value: float | None, best: float | None) -> Cell:
    return Cell("") if value is None else Cell(f"{value:.3f}", best=value == best)


def _verdict(low: float, high: float) -> str:
    if low > 0:
        return "worse"
    return "better" if high < 0 else "not told apart"
