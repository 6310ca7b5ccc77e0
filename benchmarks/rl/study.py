"""What the studies of this folder share: a grid with seed 0, the other seeds with the best of it, a summary."""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

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

RESULTS = Path(__file__).parents[1] / "results" / "rl"
Options = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """Agents on cases (bandits, environments), a cell for each (case, agent, options, seed).

    Args:
        text: docstring of the study, for ``--help``.
        module: that runs a cell.
        grids: agent to its configurations; tables have this order.
        cases: by name, with what a cell needs to know of them.
        usual: the cases of the reduced form.
        cell: settings to figures; ``curve`` among them is a list of the same length for every seed of a case.
        score: the figure that chooses a configuration with seed 0; the smallest is best.
        figures: columns of the table.
    """

    text: str | None
    module: str
    grids: Mapping[str, Sequence[Options]]
    cases: Mapping[str, Mapping[str, Any]]
    usual: Sequence[str]
    cell: Callable[[dict[str, Any], Path], dict[str, Any]]
    score: str
    figures: Sequence[str]
    agents: Sequence[str] = ()
    dear: frozenset[tuple[str, str]] = frozenset()
    """(case, agent) that the reduced form leaves out; ``--all`` runs them."""
    curve: tuple[str, str] = ("share of the run", "")
    undrawn: Sequence[str] = ()
    """Agents that would only stretch the axis of the picture."""

    def planned(self, a: argparse.Namespace, case: str, agent: str, options: Options, seed: int) -> Any:
        """File and arguments of a cell."""
        settings = {"case": case, "agent": agent, "options": options, "seed": seed, "scale": a.scale}
        words = [agent, *(f"{key}{value:g}" if isinstance(value, (int, float)) else f"{key}-{value}"
                          for key, value in options.items()), f"seed{seed}"]  # fmt: skip
        words += [] if a.scale == 1.0 else [f"scale{a.scale:g}"]
        path = a.results / case / f"{'_'.join(words)}.json"
        return path, ["cell", "--cell", str(path), "--settings", json.dumps(settings)]

    def chosen(self, a: argparse.Namespace, case: str, agent: str) -> Options:
        """The best configuration with seed 0."""
        grid = self.grids[agent]
        if len(grid) == 1:
            return grid[0]

        def score(options: Options) -> float:
            record = read_cell(self.planned(a, case, agent, options, 0)[0])
            assert record is not None
            return float(record[self.score])

        return min(grid, key=score)

    def finish(self, a: argparse.Namespace, cells: list[Any], deadline: float | None) -> None:
        """With ``--jobs 1`` in this process, which spares the start of one for every cell."""
        if a.jobs == 1:
            waiting = [(path, words) for path, words in cells if not path.exists()]
            for number, (path, words) in enumerate(waiting, 1):
                if deadline is not None and time.monotonic() > deadline:
                    break
                path.parent.mkdir(parents=True, exist_ok=True)
                self.run_cell(json.loads(words[-1]), path)
                print(f"[{number}/{len(waiting)}] {path.parent.name}/{path.stem}", flush=True)
            left = sum(not path.exists() for path, _ in cells)
        else:
            _, left = run_cells(self.module, cells, jobs=a.jobs, deadline=deadline)
        if left:
            print(f"{left} cells left; call again to continue")
            sys.exit(3)

    def run_cell(self, settings: dict[str, Any], path: Path) -> None:
        started = time.process_time()
        scratch = path.with_suffix(".run")
        figures = self.cell(settings, scratch)
        write_cell(path, {"settings": settings, **figures, "seconds": time.process_time() - started})
        (scratch / "checkpoint.pt").unlink(missing_ok=True)
        if scratch.is_dir():
            scratch.rmdir()

    def summary(self, a: argparse.Namespace) -> dict[str, Any]:
        """Rows of the cases and agents that were asked for; others stay as the last summary has them."""
        tables: dict[str, Any] = (read_cell(a.results / "summary.json") or {"cases": {}})["cases"]
        for case in a.cases:
            for agent in a.agents:
                if (case, agent) in self.dear and not a.all:
                    continue
                options = self.chosen(a, case, agent)
                found = [read_cell(self.planned(a, case, agent, options, seed)[0]) for seed in a.seeds]
                records = [record for record in found if record is not None]
                assert len(records) == len(a.seeds), f"{case}, {agent}: cells are missing"
                row: dict[str, Any] = {"options": options, "seeds": len(records), "scale": a.scale}
                row["command"] = command(self.module)
                row |= {key: mean_error([r[key] for r in records]) for key in (*self.figures, "seconds")}
                row["each"] = {key: [r[key] for r in records] for key in self.figures}
                row["curve"] = [mean_error(column) for column in np.array([r["curve"] for r in records]).T]
                tables.setdefault(case, {})[agent] = row
        cells = [json.loads(path.read_text()) for path in a.results.glob("*/*.json")]
        minutes = sum(cell["seconds"] for cell in cells) / 60
        return {"command": command(self.module), "environment": environment(), "cells": len(cells),
                "cpu_minutes": round(minutes, 1), "cases": tables}  # fmt: skip

    def report(self, a: argparse.Namespace) -> None:
        found = self.summary(a)
        write_cell(a.results / "summary.json", found, sort_keys=False)
        print(f"{len(a.seeds)} seeds, {found['cpu_minutes']} CPU minutes of all {found['cells']} cells")
        for case, rows in found["cases"].items():
            print(f"\n{case}: mean ± standard error over seeds\n")
            print("| agent | " + " | ".join(key.replace("_", " ") for key in self.figures) + " | CPU s | options |")
            print("| --- " * (len(self.figures) + 3) + "|")
            for agent, row in rows.items():
                words = [f"{row[key][0]:.4g} ± {row[key][1]:.2g}" for key in self.figures]
                options = ", ".join(f"{k} {v}" for k, v in row["options"].items()) or "-"
                print(f"| {agent} | {' | '.join(words)} | {row['seconds'][0]:.0f} | {options} |")
        self.plot(found["cases"], a.results / "curves.png")

    def plot(self, tables: dict[str, Any], path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5 * len(tables), 4), layout="constrained")
        for axes, (case, rows) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
            for number, (agent, row) in enumerate(rows.items()):
                if agent in self.undrawn:
                    continue
                mean, error = np.array(row["curve"]).T
                share = np.linspace(0, 1, len(mean) + 1)[1:]
                axes.plot(share, mean, ("-", "--", ":")[number // 5 % 3], label=agent)
                axes.fill_between(share, mean - error, mean + error, alpha=0.15)
            axes.set(title=case, xlabel=self.curve[0], ylabel=self.curve[1])
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)
        figure.savefig(path, dpi=100)

    def main(self) -> None:
        warnings.filterwarnings("ignore")
        parser = study_parser(self.text, ("run", "report", "cell"), RESULTS / self.module.rpartition(".")[2])
        parser.add_argument("--settings")
        parser.add_argument("--scale", type=float, default=1.0, help="factor on the length of every run")
        parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
        parser.add_argument("--cases", nargs="+", choices=list(self.cases), default=list(self.usual))
        parser.add_argument("--agents", nargs="+", choices=list(self.grids), default=list(self.agents or self.grids))
        parser.add_argument("--all", action="store_true", help="agents too that the reduced form leaves out of a case")
        a = parser.parse_args()
        if a.command == "cell":
            self.run_cell(json.loads(a.settings), a.cell)
            return
        if a.command == "run":
            deadline = deadline_of(a)
            pairs = [(c, agent) for c in a.cases for agent in a.agents if a.all or (c, agent) not in self.dear]
            grid = [self.planned(a, *pair, options, 0) for pair in pairs for options in self.grids[pair[1]]
                    if len(self.grids[pair[1]]) > 1]  # fmt: skip
            self.finish(a, grid, deadline)
            self.finish(a, [self.planned(a, *p, self.chosen(a, *p), s) for p in pairs for s in a.seeds], deadline)
        self.report(a)


def thinned(values: Sequence[float], points: int = 50) -> list[float]:
    """At most so many of the values, the last one among them."""
    index = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))
    return [round(float(values[i]), 4) for i in index]


def returns_over_steps(episodes: Sequence[Sequence[float]], steps: int, points: int = 40) -> list[float]:
    """Mean return of the last 20 episodes at equally spaced steps; the first return before the first one has ended."""
    ends, totals = np.array([row[0] for row in episodes]), np.array([row[1] for row in episodes])
    assert len(ends), "no episode has ended: give a larger --scale"
    out = []
    for step in np.linspace(0, steps, points + 1)[1:]:
        done = int(np.searchsorted(ends, step, side="right"))
        out.append(float(np.mean(totals[max(0, done - 20) : done])) if done else float(totals[0]))
    return [round(value, 4) for value in out]
