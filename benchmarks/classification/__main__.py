"""Command line of the study: tune, run all cells, report."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import benchmarks.classification
from benchmarks.cells import deadline_of, run_cells, study_parser
from benchmarks.classification.images import load
from benchmarks.classification.one_run import run_cell
from benchmarks.classification.report import report
from benchmarks.classification.rows import ROWS, base_of
from benchmarks.classification.sizes import FULL, RESULTS, folder, sizes
from benchmarks.classification.tuning import configurations_of, remove_stale, tuned, tuning_cell


def arguments_of(arguments: argparse.Namespace, method: str, configuration: int, seed: int, **extra: Any) -> list[str]:
    """Command line of one cell."""
    line = ["cell", "--data", arguments.data, "--method", method, "--configuration", str(configuration)]
    line += ["--seed", str(seed), "--cell", str(extra.pop("cell"))]
    line += ["--full"] if arguments.full else []
    line += ["--horizon", str(arguments.horizon)] if arguments.horizon else []
    line += ["--data-dir", str(arguments.data_dir)] if arguments.data_dir else []
    line += ["--networks", str(arguments.networks)] if arguments.networks else []
    line += ["--device", arguments.device] if arguments.device != "cpu" else []
    for key, value in extra.items():
        line += [f"--{key}"] if value is True else [f"--{key}", str(value)]
    return line


def run_study(arguments: argparse.Namespace) -> int:
    """Tune, then run all seeds, within the time budget; a later call continues."""
    study, root = sizes(arguments), folder(arguments)
    options = {"jobs": arguments.jobs, "deadline": deadline_of(arguments), "kept": arguments.device != "cpu"}
    load(arguments.data, arguments.data_dir, limit=1)
    at_size = study.tune_train == 0  # every row is, on digits
    rows = [name for name, row in ROWS.items() if not (at_size and row.at_size)]
    methods = arguments.methods.split(",") if arguments.methods else rows
    splits = range(study.seeds if arguments.data == "digits" else study.tune_splits)
    tuning = []
    for seed in splits:
        for method in methods:
            for k in range(len(configurations_of(arguments, method))):
                if not ROWS[method].epochs_of:
                    path = tuning_cell(arguments, method, k, seed)
                    tuning.append((path, arguments_of(arguments, method, k, seed, cell=path, tuning=True)))
    _, left = run_cells("benchmarks.classification", tuning, **options)
    if left:
        print(f"{left} tuning cells left; call again to continue")
        return 1
    for timed in (False, True):
        final = []
        for seed in range(study.seeds):
            for method in methods:
                row = ROWS[method]
                best = tuned(arguments, method, seed)
                if bool(row.epochs_of) != timed or best is None:
                    continue
                path = root / "final" / f"{method}-{seed}.json"
                remove_stale(path, configurations_of(arguments, method)[best])
                extra: dict[str, Any] = {}
                if timed:
                    slow, fast = (cpu_per_epoch(root, name) for name in (row.epochs_of, base_of(method)))
                    if slow is None or fast is None:
                        continue
                    extra["epochs"] = max(1, round(study.epochs * slow / fast))
                final.append((path, arguments_of(arguments, method, best, seed, cell=path, **extra)))
        _, left = run_cells("benchmarks.classification", final, **options)
        if left:
            print(f"{left} cells left; call again to continue")
            return 1
    report(arguments)
    return 0


def cpu_per_epoch(root: Path, method: str) -> float | None:
    """Median CPU seconds per epoch of a method's final cells."""
    records = [json.loads(path.read_text()) for path in root.glob(f"final/{method}-[0-9]*.json")]
    return float(np.median([r["cpu_seconds"] / r["epochs"] for r in records])) if records else None


def main() -> int:
    """Command line."""
    parser = study_parser(benchmarks.classification.__doc__, ["run", "cell", "report"], RESULTS)
    parser.add_argument("--data", choices=sorted(FULL), required=True)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--device", default="cpu", help="e.g. cuda; --jobs processes share it")
    parser.add_argument("--networks", type=Path, help="folder in which the networks of the final runs are kept")
    parser.add_argument("--horizon", type=int, default=0, help="epochs of the final runs; 0 takes the study's")
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds or folds; 0 takes the study's")
    parser.add_argument("--methods", default="", help="comma-separated subset of the rows")
    parser.add_argument("--method", choices=list(ROWS))
    parser.add_argument("--configuration", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--tuning", action="store_true")
    arguments = parser.parse_args()
    if arguments.command == "cell":
        run_cell(arguments)
        return 0
    if arguments.command == "report":
        report(arguments)
        return 0
    return run_study(arguments)


if __name__ == "__main__":
    sys.exit(main())
