"""The tables."""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks.cells import mean_error, read_cell
from benchmarks.nuts.one_run import reference_path
from benchmarks.nuts.rows import ROWS
from benchmarks.nuts.sizes import NOISE, folder

WORST_R_HAT = 1.05
"""Data sets whose two chains disagree by more are left out of the average: their reference is not the posterior."""


def averages(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """What the table shows, one number per run."""
    names = ("variance_correlation", "std_correlation", "variance_ratio", "mean_error")
    found = {name: [run[name][0] for run in runs] for name in names}
    return found | {level: [run["coverage"][level][0] for run in runs] for level in ("0.5", "0.9", "0.95")}


def line(name: str, values: dict[str, list[float]]) -> str:
    """Means over runs, with the standard error of the correlations over data sets and seeds."""
    cells = []
    for key, numbers in values.items():
        mean, error = mean_error(numbers)
        percent = key in ("0.5", "0.9", "0.95")
        cells.append(f"{100 * mean:.0f}" if percent else f"{mean:.2f} ± {error:.2f}")
    return f"| {name} | {' | '.join(cells)} |"


def report(arguments: argparse.Namespace) -> None:
    """References, then a table per data set, then the average over those that every method has finished.

    Sets whose chains have not mixed (:data:`WORST_R_HAT`) are shown, but not averaged.
    """
    references = {data: read_cell(reference_path(arguments, data)) for data in NOISE}
    header = "| method | correlation of variances | of std | variance ratio | error of mean / std "
    header += "| 50 % | 90 % | 95 % |"
    print("| data | parameters | R-hat | smallest ESS | divergences | two chains' correlation | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for data in NOISE:
        record = references[data]
        if record is not None:
            print(
                f"| {data} | {record['parameters']} | {record['r_hat']:.3f} | {record['effective_samples']:.0f} | "
                f"{record['divergences']} of {record['draws']} | {record['ceiling']:.3f} | "
                f"{record['cpu_seconds']:.0f} |"
            )
    cells = {data: {m: read_cell(folder(arguments, data) / f"{m}.json") for m in ROWS} for data in NOISE}
    mixed = {data for data, record in references.items() if record is not None and record["r_hat"] <= WORST_R_HAT}
    complete = [data for data in NOISE if data in mixed and all(cells[data].values())]
    for data in NOISE:
        if any(cells[data].values()):
            print(f"\n{data}\n\n{header}\n|---|{'---|' * 7}")
            for method, record in cells[data].items():
                if record is not None:
                    print(line(method, averages(record["runs"])))
    if len(complete) > 1:
        print(f"\nmean over {', '.join(complete)}\n\n{header}\n|---|{'---|' * 7}")
        for method in ROWS:
            runs = [run for data in complete for run in (cells[data][method] or {})["runs"]]
            print(line(method, averages(runs)))
