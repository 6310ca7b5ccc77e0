"""One cell: a method on a data set, all splits."""

from __future__ import annotations

import argparse
import math
import sys
import time
from typing import Any

from benchmarks.cells import command, environment, write_cell
from benchmarks.uci.data import Part, split
from benchmarks.uci.methods import METHODS, Method, Task, best_noise, log_likelihood, pooled, run, tested
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError

PRIORS = (0.3, 1.0, 3.0, 10.0)
BATCH = 100
RUNGS = ((8, 0.25), (4, 0.5), (2, 1.0))
"""Configurations that are tried, and the share of the steps that each gets."""
POWER_LIMIT = 2000
"""Training rows of the largest data set while tuning."""

Configuration = tuple[float, float, float]
"""(prior precision, learning rate, noise to begin with)."""
DIVERGED = -math.inf


def run_all(
    method: Method, wanted: list[tuple[int, Configuration]], parts: dict[int, tuple[Part, Part]], steps: int, seed: int
) -> dict[tuple[int, Configuration], dict[str, Any]]:
    """Train (split, configuration) pairs, those with one learning rate together."""
    out = {}
    for lr in sorted({configuration[1] for _, configuration in wanted}):
        pairs = [(number, configuration) for number, configuration in wanted if configuration[1] == lr]
        out.update(zip(pairs, run_some(method, pairs, parts, lr, steps, seed), strict=True))
    return out


def run_some(
    method: Method,
    pairs: list[tuple[int, Configuration]],
    parts: dict[int, tuple[Part, Part]],
    lr: float,
    steps: int,
    seed: int,
) -> list[dict[str, Any] | None]:
    """Train pairs of one learning rate together; those that diverge stop the others, which are then trained in two
    halves. ``None`` for a pair that diverges on its own."""
    tasks = [
        Task(*parts[number], prior=configuration[0], noise=configuration[2])
        for number, configuration in pairs
        for _ in range(method.members)
    ]
    try:
        return list(pooled(method, run(method, tasks, lr, steps, BATCH, seed)))
    except (NonFiniteStatisticsError, NotPositiveDefiniteError):
        if len(pairs) == 1:
            return [None]
        middle = len(pairs) // 2
        halves = (pairs[:middle], pairs[middle:])
        return [found for half in halves for found in run_some(method, half, parts, lr, steps, seed)]


def quality(method: Method, found: dict[str, Any] | None, held: Part) -> tuple[float, float]:
    """Log-likelihood on held-out rows of the training part, and the noise that it is at."""
    if found is None or not bool(found["outputs"].isfinite().all()):
        return DIVERGED, 1.0
    y = held.y[: found["outputs"].shape[1]]
    noise = float(found["noise"]) if method.learns_noise else best_noise(found["outputs"], y)
    return log_likelihood(found["outputs"], y, noise), noise


def run_cell(arguments: argparse.Namespace) -> None:
    """Tune and test."""
    method, start = METHODS[arguments.method], time.process_time()
    numbers = range(arguments.splits)
    limit = POWER_LIMIT if arguments.data == "power" else 0
    inner = {k: split(arguments.data_dir, arguments.data, k, tuning=True, limit=limit) for k in numbers}
    noises = method.noises or (0.5,)
    everything = [(prior, lr, noise) for prior in PRIORS for lr in method.rates for noise in noises]
    alive: dict[int, list[Configuration]] = {k: everything for k in numbers}
    scores: dict[tuple[int, Configuration], tuple[float, float]] = {}
    for count, share in RUNGS:
        for k in numbers:
            alive[k] = sorted(alive[k], key=lambda c, k=k: -scores[k, c][0] if scores else 0.0)[:count]  # type: ignore[misc]
        wanted = [(k, configuration) for k in numbers for configuration in alive[k]]
        found = run_all(method, wanted, inner, round(share * arguments.steps), seed=1)
        scores = {(k, c): quality(method, found[k, c], inner[k][1]) for k, c in wanted}
    chosen = {k: max(alive[k], key=lambda c, k=k: scores[k, c][0]) for k in numbers}  # type: ignore[misc]
    outer = {k: split(arguments.data_dir, arguments.data, k, tuning=False) for k in numbers}
    found = run_all(method, list(chosen.items()), outer, arguments.steps, seed=2)
    lines = []
    for k in numbers:
        result, held = found[k, chosen[k]], outer[k][1]
        if result is None:
            sys.exit(f"split {k}: the configuration that tuning chose, {chosen[k]}, diverges on all training rows")
        noise = float(result["noise"]) if method.learns_noise else scores[k, chosen[k]][1]
        lines.append(tested(k, result["outputs"], noise, held) | {"prior": chosen[k][0], "lr": chosen[k][1]})
    record = {"method": arguments.method, "data": arguments.data, "steps": arguments.steps, "splits": lines}
    record |= {"cpu_seconds": round(time.process_time() - start, 1), "environment": environment()}
    write_cell(arguments.cell, record | {"command": command("benchmarks.uci")})
