"""Command line of the study."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import benchmarks.nuts
from benchmarks.cells import deadline_of, run_cells, study_parser
from benchmarks.nuts.one_run import MODULE, reference_path, run_method, run_reference
from benchmarks.nuts.report import report
from benchmarks.nuts.rows import ROWS
from benchmarks.nuts.sizes import FORMS, NOISE, RESULTS, check_data, folder


def chosen(text: str, known: dict[str, object], what: str) -> list[str]:
    """Names of a comma-separated list."""
    names = text.split(",") if text else list(known)
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(f"no {what} {', '.join(unknown)}; choose from {', '.join(known)}")
    return names


def run_study(arguments: argparse.Namespace) -> int:
    """One data set after the other, its reference first, within the time budget; a later call continues."""
    data_dir = check_data(arguments.data_dir)
    deadline = deadline_of(arguments)
    common = ["--form", arguments.form, "--data-dir", str(data_dir), "--results", str(arguments.results)]
    left = 0
    methods = chosen(arguments.methods, dict(ROWS), "method")
    for data in chosen(arguments.data, dict(NOISE), "data set"):
        path = reference_path(arguments, data)
        line = ["reference", "--data", data, *common, "--cell", str(path)]
        _, missing = run_cells(MODULE, [(path, line)], jobs=arguments.jobs, deadline=deadline)
        cells = []
        for method in methods:
            path = folder(arguments, data) / f"{method}.json"
            cells.append((path, ["cell", "--data", data, "--method", method, *common, "--cell", str(path)]))
        if not missing:
            _, missing = run_cells(MODULE, cells, jobs=arguments.jobs, deadline=deadline)
        left += missing
    if left:
        print("cells left; call again to continue")
        return 1
    report(arguments)
    return 0


def main() -> int:
    """Command line."""
    parser = study_parser(benchmarks.nuts.__doc__, ["run", "reference", "cell", "report"], RESULTS)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--form", choices=list(FORMS), default="reduced")
    parser.add_argument("--data", default="", help="comma-separated subset of the data sets")
    parser.add_argument("--methods", default="", help="comma-separated subset of the rows")
    parser.add_argument("--method", choices=list(ROWS))
    arguments = parser.parse_args()
    if arguments.command == "run":
        return run_study(arguments)
    if arguments.command == "reference":
        run_reference(arguments)
    elif arguments.command == "cell":
        run_method(arguments)
    else:
        report(arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
