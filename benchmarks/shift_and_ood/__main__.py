"""Command line of the study: run all cells, report."""

from __future__ import annotations

import sys
from pathlib import Path

import benchmarks.shift_and_ood
from benchmarks.cells import finish, study_parser
from benchmarks.classification.sizes import study_name
from benchmarks.classification.tuning import remove_stale
from benchmarks.shift_and_ood.images import TASKS, require_files
from benchmarks.shift_and_ood.one_run import METHODS, cell_path, run_cell, tuned_configuration, tuned_methods

RESULTS = Path(__file__).parents[1] / "results" / "shift_and_ood"
SEEDS = 5


def main() -> int:
    """Command line."""
    parser = study_parser(benchmarks.shift_and_ood.__doc__, ["run", "cell", "report"], RESULTS)
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--full", action="store_true", help="as many images as the full classification study")
    parser.add_argument("--networks", type=Path, help="what the classification study has kept, not trained again")
    parser.add_argument("--task", choices=list(TASKS))
    parser.add_argument("--method", choices=METHODS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", type=Path, help="page of documentation whose tables are written anew")
    parser.add_argument("--figure", type=Path, help="picture of the corruption curves to write")
    arguments = parser.parse_args()
    arguments.results /= "full" if arguments.full else ""
    if arguments.command == "cell":
        run_cell(arguments)
        return 0
    if arguments.command == "run":
        directory = require_files(arguments.data_dir)
        cells = []
        for seed in range(SEEDS):
            for task in [arguments.task] if arguments.task else TASKS:
                study = study_name(TASKS[task].data, full=arguments.full)
                for method in [arguments.method] if arguments.method else tuned_methods(study):
                    path = cell_path(arguments.results, task, method, seed)
                    remove_stale(path, tuned_configuration(method, study, seed))
                    line = ["cell", "--task", task, "--method", method, "--seed", str(seed)]
                    line += ["--full"] if arguments.full else []
                    line += ["--networks", str(arguments.networks)] if arguments.networks else []
                    cells.append((path, [*line, "--cell", str(path), "--data-dir", str(directory)]))
        if not finish("benchmarks.shift_and_ood", cells, arguments):
            return 1
    from benchmarks.shift_and_ood.report import report

    report(arguments.results, page=arguments.page, figure=arguments.figure)
    return 0


if __name__ == "__main__":
    sys.exit(main())
