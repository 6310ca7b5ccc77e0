"""Command line of the study: run all cells, report."""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import benchmarks.active
from benchmarks.active import classification, regression
from benchmarks.active.report import report
from benchmarks.active.sizes import FORMS
from benchmarks.cells import finish, study_parser

RESULTS = Path(__file__).parents[1] / "results" / "active"
REGRESSION, CLASSES = ("yacht", "boston", "energy"), ("digits", "mnist")
OTHERS = ("concrete", "power", "wine_red")
"""Sets of regression that run only where they are asked for, ``--sets concrete``."""
REFERENCES = ("NUTS", "HMC")
"""On yacht only."""

REDUCED = {
    "digits": {"noisy K-FAC": classification.ACQUISITIONS, "IVON": ("random", "bald", "batchbald")},
    "mnist": {"noisy K-FAC": classification.ACQUISITIONS, "IVON": ("random", "bald")},
}
"""Acquisitions of every method, in the reduced form."""


def word(name: str) -> str:
    return name.replace(" ", "_").lower()


def cells_of(arguments: argparse.Namespace) -> list[tuple[Path, list[str]]]:
    """All cells, data set by data set."""
    out = []
    folder = arguments.results / arguments.form
    shared = ["--form", arguments.form, "--data-dir", str(arguments.data_dir)]
    for data in arguments.sets.split(","):
        if data in (*REGRESSION, *OTHERS):
            for method in regression.METHODS:
                if arguments.methods and method not in arguments.methods.split(";"):
                    continue
                if data != "yacht" and method in REFERENCES:
                    continue
                path = folder / data / f"{word(method)}.json"
                out.append((path, ["cell", "--data", data, "--method", method, "--cell", str(path), *shared]))
            continue
        seeds = range(arguments.seeds or FORMS[arguments.form].class_seeds)
        rows = [(method, a, "continue") for method in classification.METHODS for a in classification.ACQUISITIONS]
        if arguments.form == "reduced":
            rows = [row for row in rows if row[1] in REDUCED[data].get(row[0], ())]
        if data == "digits":
            rows += [("noisy K-FAC", "bald", update) for update in classification.UPDATES[1:]]
        for seed in seeds:
            for method, acquisition, update in rows:
                path = folder / data / f"{word(method)}_{acquisition}_{update}_{seed}.json"
                words = ["cell", "--data", data, "--method", method, "--acquisition", acquisition, "--update", update]
                out.append((path, [*words, "--seed", str(seed), "--cell", str(path), *shared]))
    return out


def main() -> int:
    """Command line."""
    warnings.filterwarnings("ignore")
    parser = study_parser(benchmarks.active.__doc__, ["run", "cell", "report"], RESULTS)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--sets", default=",".join((*REGRESSION, *CLASSES)), help="comma-separated data sets")
    parser.add_argument("--methods", help="of regression, separated by semicolons; all by default")
    parser.add_argument("--seeds", type=int, help="of classification; by default as many as the form has")
    parser.add_argument("--form", choices=list(FORMS), default="reduced")
    parser.add_argument("--data")
    parser.add_argument("--method")
    parser.add_argument("--acquisition")
    parser.add_argument("--update")
    parser.add_argument("--seed", type=int)
    arguments = parser.parse_args()
    if arguments.command == "cell":
        (classification if arguments.data in CLASSES else regression).run_cell(arguments)
        return 0
    everything = (*REGRESSION, *OTHERS, *CLASSES)
    unknown = sorted(set(arguments.sets.split(",")) - set(everything))
    if unknown:
        parser.error(f"unknown data sets {', '.join(unknown)}; choose from {', '.join(everything)}")
    if arguments.command == "run" and not finish("benchmarks.active", cells_of(arguments), arguments):
        return 1
    report(arguments.results, arguments.form)
    return 0


if __name__ == "__main__":
    sys.exit(main())
