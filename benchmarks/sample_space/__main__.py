"""Command line of the study: tune, run all cells, report."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import benchmarks.sample_space
from benchmarks.cells import deadline_of, read_cell, run_cells, study_parser
from benchmarks.sample_space.one_run import MODULE, run_cell
from benchmarks.sample_space.report import REFERENCE, chosen, report
from benchmarks.sample_space.rows import FIRST, ROWS
from benchmarks.sample_space.sizes import FORMS, RESULTS, TASKS, folder
from benchmarks.sample_space.step_time import run_step_time
from benchmarks.sample_space.tasks import check_data

Cell = tuple[Path, list[str]]
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**33), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""glibc keeps freed blocks: methods that hold rows of all parameters else spend half of their time on page faults."""


def path_of(arguments: argparse.Namespace, task: str, method: str, configuration: int, seed: int) -> Path:
    """Where a run is; its name changes with the configuration."""
    text = json.dumps(ROWS[method].configurations(task)[configuration], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return folder(arguments, task) / "runs" / f"{method}-{digest}-{seed}.json"


def line_of(arguments: argparse.Namespace, task: str, *words: str) -> list[str]:
    """Command line of a cell."""
    return [*words, "--task", task, "--form", arguments.form, "--data-dir", str(arguments.data_dir)]


def run_of(arguments: argparse.Namespace, task: str, method: str, configuration: int, seed: int) -> Cell:
    """One training run."""
    path = path_of(arguments, task, method, configuration, seed)
    words = ["cell", "--method", method, "--configuration", str(configuration), "--seed", str(seed)]
    return path, [*line_of(arguments, task, *words), "--cell", str(path)]


def tuning(arguments: argparse.Namespace, tasks: Sequence[str], methods: Sequence[str]) -> list[Cell]:
    """All configurations with seed 0."""
    return [
        run_of(arguments, task, method, k, 0)
        for task in tasks
        for method in methods
        for k in range(len(ROWS[method].configurations(task)))
    ]


def further_seeds(arguments: argparse.Namespace, tasks: Sequence[str], methods: Sequence[str]) -> list[Cell]:
    """The best configuration of every method with the other seeds."""
    seeds = arguments.seeds or FORMS[arguments.form].seeds
    return [
        run_of(arguments, task, method, best(arguments, task, method), seed)
        for seed in range(1, seeds)
        for task in tasks
        for method in methods
        if ROWS[method].configurations(task)
    ]


def best(arguments: argparse.Namespace, task: str, method: str) -> int:
    """Index of the configuration that tuning takes; all of them have been run with seed 0."""
    configurations, seeds = ROWS[method].configurations(task), arguments.seeds or FORMS[arguments.form].seeds
    paths = [path_of(arguments, task, method, k, seed) for k in range(len(configurations)) for seed in range(seeds)]
    return configurations.index(chosen([record for record in map(read_cell, paths) if record])["configuration"])


def step_times(arguments: argparse.Namespace, tasks: Sequence[str]) -> list[Cell]:
    """The comparison of step times of every task."""
    return [
        (path, [*line_of(arguments, task, "step_time"), "--cell", str(path)])
        for task in tasks
        for path in [folder(arguments, task) / "step_time.json"]
    ]


def run_study(arguments: argparse.Namespace) -> int:
    """Tune, then run all seeds, within the time budget; a later call continues."""
    deadline = deadline_of(arguments)
    tasks, methods = chosen_tasks(arguments), chosen_methods(arguments)
    for task in tasks:
        check_data(task, arguments.data_dir)
    groups = [[m for m in methods if (m in FIRST) == first] for first in (True, False)]
    stages = [
        lambda: tuning(arguments, tasks, groups[0]),
        lambda: step_times(arguments, tasks),
        lambda: further_seeds(arguments, tasks, groups[0]),
        lambda: tuning(arguments, tasks, groups[1]),
        lambda: further_seeds(arguments, tasks, groups[1]),
    ]
    for stage in stages:
        # where a seed fails another configuration is taken, whose seeds come next
        while cells := [cell for cell in stage() if not cell[0].exists()]:
            _, left = run_cells(MODULE, cells, jobs=arguments.jobs, deadline=deadline, variables=ALLOCATOR)
            if left:
                print(f"{left} cells of this stage left; call again to continue")
                return 1
    report(arguments, tasks)
    return 0


def chosen_tasks(arguments: argparse.Namespace) -> list[str]:
    """The tasks that are asked for."""
    tasks: list[str] = arguments.tasks.split(",")
    unknown = [task for task in tasks if task not in TASKS]
    if unknown:
        sys.exit(f"no task {', '.join(unknown)}; choose from {', '.join(TASKS)}")
    return tasks


def chosen_methods(arguments: argparse.Namespace) -> list[str]:
    """The rows that are asked for and that this version of the library has."""
    methods: list[str] = arguments.methods.split(",") if arguments.methods else list(ROWS)
    unknown = [method for method in methods if method not in ROWS]
    if unknown:
        sys.exit(f"no row {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    for method in methods:
        if not ROWS[method].available:
            print(f"row {method} skipped: vogn.METHODS has no {ROWS[method].method!r} in this version")
    return [method for method in methods if ROWS[method].available]


def main() -> int:
    """Command line."""
    parser = study_parser(benchmarks.sample_space.__doc__, ["run", "cell", "step_time", "report"], RESULTS)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--form", choices=list(FORMS), default="reduced")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated")
    parser.add_argument("--methods", default="", help="comma-separated subset of the rows")
    parser.add_argument("--seeds", type=int, default=0, help="number of seeds; 0 takes the form's")
    parser.add_argument("--reference", choices=list(ROWS), default=REFERENCE, help="what the report compares with")
    parser.add_argument("--curves", action="store_true", help="report every epoch")
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--method", choices=list(ROWS))
    parser.add_argument("--configuration", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.command == "cell":
        run_cell(arguments)
        return 0
    if arguments.command == "step_time":
        run_step_time(arguments)
        return 0
    if arguments.command == "report":
        report(arguments, chosen_tasks(arguments))
        return 0
    return run_study(arguments)


if __name__ == "__main__":
    sys.exit(main())
