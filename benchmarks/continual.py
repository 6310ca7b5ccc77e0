"""Where does a structured posterior help against forgetting?

A perceptron 64-100-100-K learns tasks one after the other: five orders of the digits' pixels (ten classes in each), or
the digits two at a time with one head whose two outputs all tasks share. Every method has a small grid of strengths (or
temperatures); the one with the best average accuracy on the validation parts with seed 0 is run with the other seeds,
and the figures are those of the test parts. Memories hold 40 examples per task; penalised methods are trained by Adam.

    OMP_NUM_THREADS=1 python -m benchmarks.continual run           # digits, about nine minutes of CPU
    OMP_NUM_THREADS=1 python -m benchmarks.continual run --data npz:mnist.npz --tasks 10 --epochs 10 --hidden 100
    python -m benchmarks.continual report

Cells are files: a run that was stopped goes on where it was, within a cell too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.cells import (
    command,
    deadline_of,
    environment,
    mean_error,
    read_cell,
    run_cells,
    study_parser,
    write_cell,
)
from vogn.continual import (
    CONTINUAL_METHODS,
    ContinualResult,
    MultiHead,
    Task,
    adam,
    permuted_tasks,
    run_tasks,
    split_tasks,
)
from vogn.data import Data, Split, load_data
from vogn.likelihoods import Categorical
from vogn.models import mlp

RESULTS = Path(__file__).parent / "results" / "continual"
MODULE = "benchmarks.continual"
MEMORY = {"memory": 40}


def strengths(*values: float, **fixed: Any) -> list[dict[str, Any]]:
    return [{"strength": value} | fixed for value in values]


VARIATIONAL = [
    {"temperature": temperature, "prior_precision": precision}
    for temperature in (1.0, 0.1)
    for precision in (1.0, 10.0)
]
GRIDS: dict[str, list[dict[str, Any]]] = {
    "finetune": [{}],
    "ewc": strengths(1.0, 10.0, 100.0),
    "si": strengths(1.0, 10.0, 100.0),
    "mas": strengths(1e-3, 1e-2, 1e-1),
    "vcl": VARIATIONAL,
    "vcl-kfac": VARIATIONAL,
    "kronecker": strengths(1.0, 10.0, 30.0, 100.0),
    "l2": strengths(1.0, 3.0, 10.0, **MEMORY),
    "fromp": strengths(1.0, 10.0, 100.0, **MEMORY),
    "replay": [MEMORY],
    "joint": [{}],
}
"""Method to its configurations; the table has this order."""
SEEDED = ("ewc", "vcl", "vcl-kfac", "kronecker", "l2", "replay", "joint")
"""Methods with random numbers of their own."""
BENCHMARKS = {"permuted": "domain", "split": "domain", "split-heads": "task"}
"""Benchmark to its scenario."""


def tasks_of(benchmark: str, data: Data, part: Split, count: int) -> list[Task]:
    arrays = (data.train.x.flatten(1), data.train.y, part.x.flatten(1), part.y)
    if benchmark == "permuted":
        return permuted_tasks(*arrays, tasks=count)
    return split_tasks(*arrays, scenario=BENCHMARKS[benchmark])  # type: ignore[arg-type]


def network(tasks: list[Task], hidden: list[int], seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    sizes = (tasks[0].x_train.shape[1], *hidden)
    if tasks[-1].head:
        body = torch.nn.Sequential(mlp(sizes), torch.nn.ReLU())
        return MultiHead(body, hidden[-1], [task.outputs for task in tasks])
    return mlp((*sizes, tasks[0].outputs))


def cell(settings: dict[str, Any], path: Path) -> None:
    """One run: a method with its options on one benchmark with one seed."""
    data = load_data(settings["data"])
    part = data.validation if settings["part"] == "validation" else data.test
    tasks = tasks_of(settings["benchmark"], data, part, settings["tasks"])
    options = dict(settings["options"])
    info = CONTINUAL_METHODS[settings["method"]]
    if info.penalised:
        options["optimizer"] = adam(1e-3)
    if settings["method"] in SEEDED:
        options["seed"] = settings["seed"]
    method = info.build(network(tasks, settings["hidden"], settings["seed"]), Categorical(), **options)
    scratch = path.with_suffix(".run")
    started = time.process_time()
    found = run_tasks(
        method, tasks, epochs=settings["epochs"], batch_size=64, seed=settings["seed"], folder=scratch,
        checkpoint_every=1000,
    )  # fmt: skip
    write_cell(path, {"settings": settings, "result": found.to_dict(), "seconds": time.process_time() - started})
    (scratch / "checkpoint.pt").unlink()
    scratch.rmdir()


def planned(arguments: argparse.Namespace, benchmark: str, method: str, options: dict[str, Any], seed: int) -> Any:
    """File and arguments of a cell; seed 0 is looked at on the validation part."""
    settings = {
        "data": arguments.data, "benchmark": benchmark, "method": method, "options": options, "seed": seed,
        "part": "test" if seed else "validation", "tasks": arguments.tasks, "epochs": arguments.epochs,
        "hidden": arguments.hidden,
    }  # fmt: skip
    name = "_".join([method, *(f"{key}{value:g}" for key, value in options.items()), f"seed{seed}"])
    path = arguments.results / benchmark / f"{name}.json"
    return path, ["cell", "--cell", str(path), "--settings", json.dumps(settings)]


def finish(cells: list[Any], arguments: argparse.Namespace, deadline: float | None) -> None:
    """Run the cells that are missing; ends the program where the deadline leaves some of them."""
    _, left = run_cells(MODULE, cells, jobs=arguments.jobs, deadline=deadline)
    if left:
        print(f"{left} cells left; call again to continue")
        sys.exit(3)


def accuracy_of(path: Path) -> float:
    record = read_cell(path)
    assert record is not None, path
    return float(record["result"]["average_accuracy"])


def summary(arguments: argparse.Namespace) -> dict[str, Any]:
    """Chosen options and figures, mean and standard error over seeds."""
    tables: dict[str, Any] = {}
    for benchmark in arguments.benchmarks:
        for method in GRIDS:
            options = chosen(arguments, benchmark, method)
            records = [read_cell(planned(arguments, benchmark, method, options, s)[0]) for s in arguments.seeds]
            results = [ContinualResult.from_dict(record["result"]) for record in records if record is not None]
            figures = {key: mean_error([r.metrics[key] for r in results]) for key in results[0].metrics}
            curve = [mean_error(values) for values in zip(*(r.averages for r in results), strict=True)]
            seconds = mean_error([record["seconds"] for record in records if record is not None])
            row = {"options": options, **figures, "curve": curve, "cpu s": seconds}
            tables.setdefault(benchmark, {})[method] = row | {"validation": looked_at(arguments, benchmark, method)}
    return {"command": command(MODULE), "environment": environment(), "benchmarks": tables}


def looked_at(arguments: argparse.Namespace, benchmark: str, method: str) -> list[dict[str, Any]]:
    """The grid, with average accuracies on the validation parts with seed 0."""
    if len(GRIDS[method]) == 1:
        return []
    cells = [(planned(arguments, benchmark, method, options, 0)[0], options) for options in GRIDS[method]]
    return [{**options, "average_accuracy": accuracy_of(path)} for path, options in cells]


def chosen(arguments: argparse.Namespace, benchmark: str, method: str) -> dict[str, Any]:
    """The configuration that is best on the validation parts with seed 0; the first one of equals."""
    if len(GRIDS[method]) == 1:
        return GRIDS[method][0]
    paths = [(planned(arguments, benchmark, method, options, 0)[0], options) for options in GRIDS[method]]
    return max(paths, key=lambda pair: accuracy_of(pair[0]))[1]


def report(arguments: argparse.Namespace) -> None:
    """Tables and plots of the benchmarks that were asked for; those of others stay in the summary."""
    found, path = summary(arguments), arguments.results / "summary.json"
    tables = found["benchmarks"]
    earlier = (read_cell(path) or {}).get("benchmarks", {})
    write_cell(path, found | {"benchmarks": earlier | tables}, sort_keys=False)
    show(tables, arguments.results, seeds=len(arguments.seeds), parts="test parts", title="{} digits")


def show(tables: dict[str, Any], results: Path, *, seeds: int, parts: str, title: str) -> None:
    """Print a table of every benchmark, and draw it.

    Args:
        tables: benchmark to rows of methods.
        results: folder of the plots.
        seeds: number of them.
        parts: what was tested on.
        title: of a plot, with the benchmark for ``{}``.
    """
    for benchmark, rows in tables.items():
        if not rows:
            continue
        print(f"\n{benchmark}, mean and standard error over {seeds} seeds, {parts}")
        print(f"| {'method':15s} | {'average accuracy':16s} | {'backward transfer':17s} | CPU s | chosen |")
        print("| --- | --- | --- | --- | --- |")
        for method, row in rows.items():
            pairs = [f"{100 * row[key][0]:.1f} ± {100 * row[key][1]:.1f}" for key in
                     ("average_accuracy", "backward_transfer")]  # fmt: skip
            picked = ", ".join(f"{key} {value}" for key, value in row["options"].items()) or "-"
            print(f"| {method:15s} | {pairs[0]:16s} | {pairs[1]:17s} | {row['cpu s'][0]:.1f} | {picked} |")
        plot(rows, results / f"{benchmark}.png", title.format(benchmark))


def plot(rows: dict[str, Any], path: Path, title: str) -> None:
    """Average accuracy over the tasks, of all methods."""
    from vogn.plots import task_curves

    errors = {m: [[max(0.0, a - e), min(1.0, a + e)] for a, e in row["curve"]] for m, row in rows.items()}
    axes = task_curves({m: [a for a, _ in row["curve"]] for m, row in rows.items()}, intervals=errors)
    axes.set_title(f"{title}: mean over seeds, bands of one standard error", fontsize=9)
    axes.figure.savefig(path, dpi=110)


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = study_parser(__doc__, ("run", "report", "cell"), RESULTS)
    parser.add_argument("--settings")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--tasks", type=int, default=5, help="of the permuted benchmark")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--hidden", type=int, nargs="+", default=[100, 100])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--benchmarks", nargs="+", choices=list(BENCHMARKS), default=["permuted", "split"])
    arguments = parser.parse_args()
    if arguments.command == "cell":
        cell(json.loads(arguments.settings), arguments.cell)
        return
    if arguments.command == "run":
        grid = [
            planned(arguments, benchmark, method, options, 0)
            for benchmark in arguments.benchmarks for method in GRIDS for options in GRIDS[method]
            if len(GRIDS[method]) > 1
        ]  # fmt: skip
        deadline = deadline_of(arguments)
        finish(grid, arguments, deadline)
        final = [
            planned(arguments, benchmark, method, chosen(arguments, benchmark, method), seed)
            for benchmark in arguments.benchmarks for method in GRIDS for seed in arguments.seeds
        ]  # fmt: skip
        finish(final, arguments, deadline)
    report(arguments)


if __name__ == "__main__":
    main()
