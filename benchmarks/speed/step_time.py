"""What does a whole training step cost: forward, backward and update?

Every method of the registry in its modes, K-FAC that measures every 10 steps and factorises every 100, torch's fused
SGD and AdamW, and peers as far as they are installed. All variants run in turn, in one process, every one on its own
copy of the network, and are measured in processor time. The kinds of steps of a schedule (plain, observing, refreshing)
are measured one by one and charged in proportion; a peer with a schedule runs whole periods. Ratios are medians over
the rounds of the ratio in the same round. A row that has used up its time sits out the other rounds; n says how many
it took part in.

    python -m benchmarks.speed.step_time
    python -m benchmarks.speed.step_time --short --compare
    python -m benchmarks.speed.step_time --device cuda       larger networks, in elapsed time between synchronisations
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from benchmarks.cells import read_cell
from benchmarks.speed.cases import Case
from benchmarks.speed.contenders import ADAMW, FOCUS, SGD, Runner, UnaffordableError, chosen, rows_of
from benchmarks.speed.measuring import (
    arguments_of,
    in_turn,
    limit_memory,
    limit_seconds,
    lines_of,
    reason,
)
from benchmarks.speed.peers import PEERS, NotInstalledError
from benchmarks.speed.questions import over_cases
from benchmarks.speed.report import table

FIRST_STEPS_SECONDS = 15.0
"""Processor time that the first steps of a row may take."""
FOCUS_SECONDS = 3.0
"""Rows of the short form may use so many times the others' processor time."""
SLOW = 0.2
"""Seconds of a step from which on one step per round is enough."""
TOLERANCE = 0.15
"""A ratio has risen if it is above the committed one by more than both spreads and this part of it."""


def skipped(error: BaseException) -> str:
    """Why a row has no numbers."""
    return str(error) if isinstance(error, UnaffordableError | NotInstalledError) else reason(error)


def timer(name: str, runner: Runner, steps: int, refused: dict[str, str]) -> Callable[[], float | None]:
    """Seconds of a step, ``None`` once the row has failed; rows whose steps are long make only one."""
    few = runner.first_seconds > SLOW

    def seconds() -> float | None:
        if name in refused:
            return None
        try:
            return runner.seconds(1 if few else steps)
        except Exception as error:  # noqa: BLE001 - whatever a row cannot do is what its line says
            refused[name] = skipped(error)
            return None

    return seconds


def measure(case: Case, arguments: Any) -> dict[str, Any]:
    """The lines of a network, and their baseline."""
    runners: dict[str, Runner] = {}
    refused: dict[str, str] = {}
    rows = chosen(rows_of(case), arguments.rows, arguments.short)
    for name, row in rows.items():
        start = time.process_time()
        try:
            with limit_seconds(FIRST_STEPS_SECONDS):
                runner = Runner(case, row, torch.device(arguments.device))
                runner.warm_up()
        except Exception as error:  # noqa: BLE001 - whatever a row cannot do is what its line says
            refused[name] = skipped(error)
        else:
            runners[name] = runner
        if not arguments.tiny:
            gc.collect()
        seconds = time.process_time() - start
        print(f"  {name}: first steps {seconds:.1f} s {refused.get(name, '')}", file=sys.stderr, flush=True)
    steps = 1 if arguments.tiny else max(1, round(0.05 / runners[SGD].seconds(1)))
    print(f"{case.title}: {len(runners)} rows, {len(refused)} skipped, {steps} steps per kind and round", flush=True)
    timers = {name: timer(name, runner, steps, refused) for name, runner in runners.items()}
    limits = {name: arguments.row_seconds * (FOCUS_SECONDS if name in FOCUS else 1.0) for name in timers}
    times = in_turn(timers, arguments.rounds, limits)
    times = {name: values for name, values in times.items() if name not in refused}
    lines = lines_of(times, [SGD, ADAMW, *(name for name in ("vogn (variational)", *PEERS) if name in times)])
    return {
        "lines": {name: lines[name] if name in lines else {"skipped": refused[name]} for name in rows},
        "baseline": SGD,
    }


def compare(committed: dict[str, Any], now: dict[str, Any]) -> list[tuple[str, str, float, float, bool]]:
    """Network, row, committed ratio to SGD, ratio now, and whether it has risen by more than spread and tolerance."""
    found = []
    for case, lines in now.items():
        for name, line in lines.items():
            old = committed.get(case, {}).get(name, {})
            if name == SGD or "ratio" not in line or "ratio" not in old:
                continue
            before, low, high = old["ratio"][SGD]
            after, low_now, high_now = line["ratio"][SGD]
            spread = max(high - low, high_now - low_now)
            found.append((case, name, before, after, after > before + spread + TOLERANCE * before))
    return found


def print_comparison(committed: dict[str, Any], now: dict[str, Any]) -> None:
    """A table of committed and present ratios, with a mark where one has risen."""
    print("| network | row | x SGD, committed | now | change | |\n|---|---|---|---|---|---|")
    for case, name, before, after, risen in compare(committed, now):
        mark = "**RISEN**" if risen else ""
        print(f"| {case} | {name} | {before:.2f} | {after:.2f} | {after / before - 1.0:+.0%} | {mark} |")


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    arguments = arguments_of("step_time", __doc__, argv, "rounds", "cases", "rows", "compare", "device")
    if arguments.short:
        arguments.rounds = min(arguments.rounds, 3)
    if arguments.device == "cpu":
        limit_memory()
    lines = over_cases(
        "step_time", arguments, measure, lambda content: table(content["lines"], SGD), keep=not arguments.compare
    )
    if arguments.compare:
        committed = read_cell(arguments.results) or {}
        print_comparison({name: found["lines"] for name, found in committed.items()}, lines)
    return lines


__all__ = ["FOCUS", "compare", "main", "measure"]

if __name__ == "__main__":
    main()
