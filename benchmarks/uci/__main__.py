"""Command line of the study: run all cells, report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import benchmarks.uci
from benchmarks.cells import finish, study_parser
from benchmarks.uci import ceiling
from benchmarks.uci.data import DATA, split
from benchmarks.uci.methods import METHODS
from benchmarks.uci.one_run import run_cell
from benchmarks.uci.report import report

RESULTS = Path(__file__).parents[1] / "results" / "uci"
ALL = [*METHODS, ceiling.NAME]


def cells_of(arguments: argparse.Namespace) -> list[tuple[Path, list[str]]]:
    """All cells, data set by data set."""
    out = []
    for data in arguments.sets.split(","):
        for method in arguments.methods.split(";"):
            if method == ceiling.NAME and data not in ceiling.SPLITS:
                continue
            path = arguments.results / data / f"{method.replace(' ', '_').replace(',', '')}.json"
            words = ["cell", "--data", data, "--method", method, "--cell", str(path), "--data-dir"]
            words += [str(arguments.data_dir), "--splits", str(arguments.splits), "--steps", str(arguments.steps)]
            out.append((path, words))
    return out


def main() -> int:
    """Command line."""
    parser = study_parser(benchmarks.uci.__doc__, ["run", "cell", "report"], RESULTS)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sets", default=",".join(DATA), help="comma-separated data sets")
    parser.add_argument("--methods", default=";".join(ALL), help="methods, separated by semicolons")
    parser.add_argument("--splits", type=int, default=20, help="of every row but NUTS")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--data", choices=DATA)
    parser.add_argument("--method", choices=ALL)
    arguments = parser.parse_args()
    if arguments.command == "cell":
        (ceiling.run_cell if arguments.method == ceiling.NAME else run_cell)(arguments)
        return 0
    if arguments.command == "run":
        for data in arguments.sets.split(","):
            split(arguments.data_dir, data, 0, tuning=True)
        if not finish("benchmarks.uci", cells_of(arguments), arguments):
            return 1
    report(arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
