"""Command line of the study."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import benchmarks.auto_settings
from benchmarks.auto_settings.cells import run
from benchmarks.auto_settings.report import finals, report
from benchmarks.auto_settings.sizes import METHODS, RESULTS, SEEDS
from benchmarks.auto_settings.trials import curvature, rates


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=benchmarks.auto_settings.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["run", "report", "finals", "rates", "curvature"])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--data", nargs="*", choices=list(SEEDS), help="only these; all by default")
    parser.add_argument("--methods", nargs="*", choices=METHODS, help="only these; all by default")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--budget-minutes", type=float, default=0.0, help="start no cell after this; 0 for no limit")
    arguments = parser.parse_args()
    if arguments.command in ("rates", "curvature"):
        {"rates": rates, "curvature": curvature}[arguments.command](arguments)
        return 0
    if arguments.command == "finals":
        finals(arguments.results)
        return 0
    status = run(arguments) if arguments.command == "run" else 0
    report(arguments.results)
    return status


if __name__ == "__main__":
    sys.exit(main())
