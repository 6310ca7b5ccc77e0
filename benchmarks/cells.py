"""Resumable cells: one small JSON file per (study, method, data, split, seed), run in worker processes.

A cell that has a file is done; deleting the file runs it again. Nothing else is kept between runs.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any


def write_cell(path: Path, record: Mapping[str, Any], *, sort_keys: bool = True) -> None:
    """Write a cell atomically, keys in alphabetical order or in their own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(record, indent=1, sort_keys=sort_keys) + "\n")
    os.replace(temporary, path)


def read_cell(path: Path) -> dict[str, Any] | None:
    """A finished cell, or ``None``."""
    return json.loads(path.read_text()) if path.exists() else None


def environment() -> dict[str, Any]:
    """Versions and machine, for the record."""
    import numpy
    import torch

    return {
        "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0],
        "numpy": numpy.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def mean_error(values: Any) -> list[float]:
    """Mean and standard error of a sequence of numbers; the error of one number is NaN."""
    import numpy

    array = numpy.asarray(values, dtype=float)
    error = float(array.std(ddof=1)) / math.sqrt(len(array)) if len(array) > 1 else math.nan
    return [float(array.mean()), error]


def command(module: str) -> str:
    """This process's command line without the places of this machine."""
    words = list(sys.argv[1:])
    for option in ("--cell", "--data-dir", "--networks", "--results"):
        if option in words:
            del words[words.index(option) : words.index(option) + 2]
    return " ".join([f"python -m {module}", *words])


def run_cells(
    module: str,
    cells: Sequence[tuple[Path, Sequence[str]]],
    *,
    jobs: int,
    deadline: float | None,
    variables: Mapping[str, str] | None = None,
    kept: bool = False,
) -> tuple[int, int]:
    """Run unfinished cells as ``python -m module ARGUMENTS`` processes with one thread each.

    Args:
        module: the study.
        cells: (file of the cell, arguments that make it).
        jobs: processes at a time.
        deadline: ``time.monotonic()`` value after which no further cell is started; ``None`` for no limit.
        variables: further environment variables of the processes.
        kept: processes make one cell after the other, not one each; on a GPU a start takes as long as some cells.

    Returns:
        Numbers of cells that are finished and unfinished afterwards.

    Raises:
        RuntimeError: if a cell failed, with the end of its output.
    """
    waiting = [(path, arguments) for path, arguments in cells if not path.exists()]
    running: list[tuple[subprocess.Popen[str], Path, Path]] = []
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"} | dict(variables or {})
    if kept:
        _run_in_kept_processes(module, waiting, jobs, deadline, environ)
        waiting = []
    done = 0
    total = len(waiting)
    while waiting or running:
        while waiting and len(running) < jobs and (deadline is None or time.monotonic() < deadline):
            path, arguments = waiting.pop(0)
            path.parent.mkdir(parents=True, exist_ok=True)
            log = path.with_suffix(".log")
            with log.open("w") as stream:
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments], stdout=stream, stderr=stream, env=environ, text=True
                )
            running.append((process, path, log))
        if not running:
            break
        time.sleep(0.2)
        for item in list(running):
            process, path, log = item
            if process.poll() is None:
                continue
            running.remove(item)
            if process.returncode or not path.exists():
                for other, _, _ in running:
                    other.terminate()
                raise RuntimeError(f"cell {path.name} failed:\n{log.read_text()[-2000:]}")
            log.unlink()
            done += 1
            print(f"[{done}/{total}] {path.parent.name}/{path.stem}", flush=True)
    finished = sum(path.exists() for path, _ in cells)
    return finished, len(cells) - finished


def _run_in_kept_processes(
    module: str,
    cells: Sequence[tuple[Path, Sequence[str]]],
    jobs: int,
    deadline: float | None,
    environ: Mapping[str, str],
) -> None:
    """Processes that take one waiting cell after the other; a failed cell ends them all."""
    os.environ.update(environ)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = [pool.submit(_run_one, module, arguments, deadline) for _, arguments in cells]
        try:
            for done, future in enumerate(as_completed(running), 1):
                if future.result():
                    print(f"[{done}/{len(cells)}] {future.result()}", flush=True)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run_one(module: str, arguments: Sequence[str], deadline: float | None) -> str:
    """One cell in this process, as if it were started for it; its name, or nothing after the deadline."""
    if deadline is not None and time.monotonic() >= deadline:
        return ""
    sys.argv = [module, *arguments]
    importlib.import_module(f"{module}.__main__").main()
    cell = Path(arguments[list(arguments).index("--cell") + 1])
    return f"{cell.parent.name}/{cell.stem}"


def study_parser(text: str | None, commands: Sequence[str], results: Path) -> argparse.ArgumentParser:
    """A parser with what the command lines of all studies share.

    Args:
        text: what ``--help`` says.
        commands: choices of the first word.
        results: where the cells lie unless ``--results`` says otherwise.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=commands)
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--budget-minutes", type=float, default=0.0, help="start no cell after this; 0 for no limit")
    parser.add_argument("--cell", type=Path, help="file of the one cell that the command `cell` makes")
    return parser


def deadline_of(arguments: argparse.Namespace) -> float | None:
    """The ``time.monotonic()`` value that ``--budget-minutes`` means, from now on."""
    return time.monotonic() + 60 * arguments.budget_minutes if arguments.budget_minutes else None


def finish(module: str, cells: Sequence[tuple[Path, Sequence[str]]], arguments: argparse.Namespace) -> bool:
    """Run unfinished cells within the budget; whether all are finished, else say how many are left."""
    _, left = run_cells(module, cells, jobs=arguments.jobs, deadline=deadline_of(arguments))
    if left:
        print(f"{left} cells left; call again to continue")
    return not left
