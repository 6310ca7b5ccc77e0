"""Command line of the study: run all cells, report."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import benchmarks.uci
from benchmarks.cells import run_cells
from benchmarks.uci import ceiling
from benchmarks.uci.data import DATA, split
from benchmarks.uci.methods import METHODS
from benchmarks.uci.one_run import run_cell
from benchmarks.uci.report import report

RESULTS = Path(__file__).parents[1] / "results" / "uci"


def cells_of(arguments: argparse.Namespace) -> list[tuple[Path, list[str]]]:
    """All cells, data set by data set."""
    out = []
    for data in arguments.sets.split(","):
        for method in arguments.methods.split(";"):
            path = arguments.results / data / f"{method.replace(' ', '_').replace(',', '')}.json"
            words = ["cell", "--data", data, "--method", method, "--cell", str(path), "--data-dir"]
            words += [str(arguments.data_dir), "--splits", str(arguments.splits), "--steps", str(arguments.steps)]
            out.append((path, words))
        if data in ceiling.SPLITS and not arguments.no_ceiling:
            path = arguments.results / data / f"{ceiling.NAME}.json"
            words = ["ceiling", "--data", data, "--cell", str(path), "--data-dir", str(arguments.data_dir)]
            out.append((path, words))
    return out


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=benchmarks.uci.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "cell", "ceiling", "report"])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sets", default=",".join(DATA), help="comma-separated data sets")
    parser.add_argument("--methods", default=";".join(METHODS), help="methods, separated by semicolons")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--no-ceiling", action="store_true", help="leave NUTS out")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--budget-minutes", type=float, default=0.0, help="start no cell after this; 0 for no limit")
    parser.add_argument("--data", choices=DATA)
    parser.add_argument("--method", choices=list(METHODS))
    parser.add_argument("--cell", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "cell":
        run_cell(arguments)
        return 0
    if arguments.command == "ceiling":
        ceiling.run_ceiling(arguments.data, arguments.data_dir, arguments.cell)
        return 0
    if arguments.command == "run":
        for data in arguments.sets.split(","):
            split(arguments.data_dir, data, 0, tuning=True)
        deadline = time.monotonic() + 60 * arguments.budget_minutes if arguments.budget_minutes else None
        _, left = run_cells("benchmarks.uci", cells_of(arguments), jobs=arguments.jobs, deadline=deadline)
        if left:
            print(f"{left} cells left; call again to continue")
            return 1
    report(arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
