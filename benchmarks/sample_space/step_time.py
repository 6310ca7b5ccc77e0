"""One cell: how long a step of each method takes, in turn and in one process."""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.cells import command, environment, write_cell
from benchmarks.sample_space.one_run import MODULE, one_step
from benchmarks.sample_space.rows import ROWS, Row, Run
from benchmarks.sample_space.sizes import FORMS, size_of
from benchmarks.sample_space.tasks import Task, make_task
from vogn.data.order import epoch_batches

BASELINE = "sgd"
FEWEST, SHORTEST = 2, 0.1
"""Steps of a round that count, and CPU seconds that they take, at least."""
WARM = 2
"""Steps before them that do not: in training, no other method has had the processor's caches since the last step."""


class Runner:
    """A method with its own network, which goes through the data by one period at a time."""

    def __init__(self, row: Row, options: Mapping[str, Any], task: Task, batch: int) -> None:
        torch.manual_seed(0)
        self.row, self.task, self.model = row, task, task.model().train()
        self.batches = [found for found in epoch_batches(task.examples, batch, 0, 0) if len(found) == batch]
        configuration = next(iter(row.grid.values()))[0] | dict(options)
        run = Run(task.examples, batch, len(self.batches))
        self.optimizer = row.build(self.model, run, seed=0, **configuration)
        self.steps = max(row.period, FEWEST)
        """Of a round: whole periods."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0  # the same weights in every round; the arithmetic does not depend on the number
        self.step = 0

    def round(self) -> float:
        """CPU seconds of a step, the mean over a period."""
        self._walk(WARM)
        start = time.process_time()
        self._walk(self.steps)
        return (time.process_time() - start) / self.steps

    def lengthen(self) -> None:
        """Rounds take long enough from now on."""
        periods = SHORTEST / (self.round() * self.steps)
        self.steps *= max(1, math.ceil(periods))

    def _walk(self, steps: int) -> None:
        for _ in range(steps):
            one_step(self.row, self.optimizer, self.task, self.model, self.batches[self.step % len(self.batches)])
            self.step += 1


def entries(methods: list[str]) -> dict[str, tuple[Row, Mapping[str, Any]]]:
    """Name to row and further options; a row whose steps differ has several."""
    found: dict[str, tuple[Row, Mapping[str, Any]]] = {}
    for name in methods:
        for kind, options in (ROWS[name].timed or {"": {}}).items():
            found[f"{name}, {kind}" if kind else name] = (ROWS[name], options)
    return found


def run_step_time(arguments: argparse.Namespace) -> None:
    """Rounds of all methods in turn; medians and quartiles of the ratios to the baseline within a round."""
    grids = {name: row.configurations(arguments.task) for name, row in ROWS.items() if row.available}
    methods = [name for name, grid in grids.items() if grid and "epochs" not in grid[0]]
    task, size = make_task(arguments, arguments.task), size_of(arguments, arguments.task)
    rounds = FORMS[arguments.form].rounds
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        runners = {
            name: Runner(row, options, task, size.batch) for name, (row, options) in entries(methods).items()
        }
        for runner in runners.values():
            runner.lengthen()
        times: dict[str, list[float]] = {name: [] for name in runners}
        for _ in range(rounds):
            for name, runner in runners.items():
                times[name].append(runner.round())
    base = np.array(times[BASELINE])
    lines = {}
    for name, seconds in times.items():
        low, median, high = np.quantile(np.array(seconds) / base, [0.25, 0.5, 0.75])
        lines[name] = {
            "milliseconds": round(1e3 * float(np.median(seconds)), 3),
            "ratio": round(float(median), 4),
            "quartiles": [round(float(low), 4), round(float(high), 4)],
        }
    record = {
        "task": arguments.task,
        "form": arguments.form,
        "baseline": BASELINE,
        "rounds": rounds,
        "steps_per_round": {name: runner.steps for name, runner in runners.items()},
        "batch": size.batch,
        "methods": lines,
        "seed": 0,
        "cpu_seconds": round(sum(sum(times[name]) * runner.steps for name, runner in runners.items()), 2),
        "command": command(MODULE),
        "environment": environment(),
    }
    write_cell(arguments.cell, record)
