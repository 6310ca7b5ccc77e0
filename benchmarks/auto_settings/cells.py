"""The cells: every setting chosen once and run several times."""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.auto_settings.one_run import SET, classify, regress
from benchmarks.auto_settings.sizes import METHODS, REGRESSIONS, RUNS, SCORES, SEEDS, SIZES, TUNED, Found, rule_of
from benchmarks.cells import command, environment, read_cell, write_cell
from benchmarks.uci.data import split

GRID = [{"lr": 0.03, "prior": 1.0}, {"lr": 0.1, "prior": 1.0}, {"lr": 0.3, "prior": 1.0}, {"lr": 0.1, "prior": 10.0}]
"""Of perceptrons by hand."""


def hand_tuned(name: str, method: str, directory: Path, results: Path) -> Found:
    """The configuration that is best on the last fifth of the first split's training part."""
    path = results / f"{name}-{method}-grid.json"
    record = read_cell(path)
    if record is None:
        train, _ = split(directory, name, 0, tuning=False)
        x, y = train.x, train.y.unsqueeze(1)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
        inside, outside = order[: len(x) * 4 // 5], order[len(x) * 4 // 5 :]
        losses = [
            regress(method, 0, x[inside], y[inside], x[outside], y[outside], configuration)["rmse"]
            for configuration in GRID
        ]
        record = {"grid": GRID, "validation_rmse": losses, "environment": environment()}
        write_cell(path, record)
    losses = [loss if math.isfinite(loss) else math.inf for loss in record["validation_rmse"]]
    return dict(record["grid"][int(np.argmin(losses))])


def repeated(data: str, run: Callable[[int, bool, Found | None], Found], found: Found) -> Found:
    """All runs of a cell, both ways; their mean score is what counts.

    Args:
        run: with number of the run, whether by hand, and what was searched if that is known; returns a record.
        found: of a cell that has runs already, all or the first, with what the search chose, or a part of that alone;
            empty if there is none.
    """
    new: Found = {}
    score = SCORES[data]
    for way in ("hand", "auto"):
        if "scores" in found.get(way, {}):
            new[way] = found[way]
            continue
        first = found.get(way, {})
        if score not in first:
            first = first | run(0, way == "hand", _settings(first))
        searched = _settings(first)
        others = [run(k, way == "hand", searched) for k in range(1, RUNS[data])]
        scores = [record[score] for record in (first, *others)]
        new[way] = first | {score: float(np.mean(scores)), "scores": scores}
    return new


def _settings(record: Found) -> Found | None:
    return {key: record[key] for key in SET if key in record} or None


def classifications(name: str, method: str, seed: int, directory: Path, found: Found) -> Found:
    """A cell of images; see :func:`repeated`."""
    tuned = json.loads((TUNED / name / "final" / f"{method}-{seed}.json").read_text())["configuration"]

    def run(k: int, by_hand: bool, searched: Found | None) -> Found:
        return classify(name, method, seed, seed + 1000 * k, directory, tuned if by_hand else None, searched)

    return repeated(name, run, found)


def regressions(name: str, method: str, seed: int, directory: Path, results: Path, found: Found) -> Found:
    """A cell of a table; see :func:`repeated`. RMSE are in the targets' units."""
    train, test = split(directory, name, seed, tuning=False)
    hand = hand_tuned(name, method, directory, results)
    data = train.x, train.y.unsqueeze(1), test.x, test.y.unsqueeze(1)

    def run(k: int, by_hand: bool, searched: Found | None) -> Found:
        record = regress(method, seed + 1000 * k, *data, hand if by_hand else None, searched)
        return record | {"rmse": record["rmse"] * test.scale}

    return repeated(name, run, found)


def finished(record: Found | None, data: str) -> bool:
    """Whether a cell is there, of today's rule, with all its runs."""
    return record is not None and record.get("rule") == rule_of(data) and "scores" in record["auto"]


def run(arguments: argparse.Namespace) -> int:
    """All cells that are not finished, in this process; what they have by today's rule is kept."""
    deadline = time.monotonic() + 60 * arguments.budget_minutes if arguments.budget_minutes else math.inf
    names = arguments.data or [*SIZES, *REGRESSIONS]
    most = max(SEEDS.values())
    methods = arguments.methods or METHODS
    cells = [(d, method, seed) for seed in range(most) for d in names for method in methods if seed < SEEDS[d]]
    for data, method, seed in cells:
        path = arguments.results / f"{data}-{method}-{seed}.json"
        before = read_cell(path)
        if finished(before, data):
            continue
        if time.monotonic() > deadline:
            print("the time is up; call again to continue")
            return 1
        known = {way: before[way] for way in ("hand", "auto")} if before is not None else {}
        if before is not None and before.get("rule") != rule_of(data):
            del known["auto"]
        if data in SIZES:
            found = classifications(data, method, seed, arguments.data_dir, known)
        else:
            found = regressions(data, method, seed, arguments.data_dir, arguments.results, known)
        record = {"data": data, "method": method, "seed": seed, "command": command("benchmarks.auto_settings")}
        record["rule"] = rule_of(data)
        write_cell(path, record | found | {"environment": environment()})
        print(path.stem, {way: found[way][SCORES[data]] for way in found}, flush=True)
    return 0
