"""Measuring in processor time, with several threads in elapsed time: variants in turn, limits on memory and time."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import resource
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, Literal

RESULTS = Path(__file__).resolve().parents[1] / "results" / "speed"
MEMORY = 10 * 2**30
"""Address space of a measuring process, in bytes."""


class ChildError(Exception):
    """A measurement failed in its process; the message is its reason."""


class UnaffordableError(Exception):
    """A method cannot afford a network as what it is."""


class TooSlowError(Exception):
    """A measurement has used up its processor time."""


def arguments_of(
    module: str,
    description: str | None,
    argv: Sequence[str] | None,
    *options: Literal["rounds", "cases", "rows", "compare", "device"],
) -> argparse.Namespace:
    """The command line of a question; the process starts again if its number of threads is not as asked for.

    Args:
        module: name of the question, as in ``python -m benchmarks.speed.NAME``.
        description: for ``--help``.
        argv: arguments, ``None`` for those of the process (only then it may start again).
        *options: what the question goes through: rounds, networks, rows that can be chosen, committed ratios, devices.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=None)
    if "rounds" in options:
        parser.add_argument("--rounds", type=int, default=5)
    if "cases" in options:
        parser.add_argument("--cases", nargs="*", default=None)
        parser.add_argument("--tiny", action="store_true", help="networks of a few weights, to try the program")
    if "rounds" in options and "cases" in options:
        parser.add_argument(
            "--row-seconds", type=float, default=3.0, help="processor time after which a row sits out the other rounds"
        )
    if "rows" in options:
        parser.add_argument("--short", action="store_true", help="fewer rounds and rows")
        parser.add_argument("--rows", nargs="*", default=None, help="only rows whose names begin so")
    if "compare" in options:
        parser.add_argument("--compare", action="store_true", help="with the committed ratios; writes nothing")
    if "device" in options:
        parser.add_argument("--device", default="cpu", help="cpu, or cuda: larger networks, in elapsed time")
    arguments = parser.parse_args(argv)
    if arguments.results is None:
        suffix = "" if getattr(arguments, "device", "cpu") == "cpu" else "_cuda"
        arguments.results = RESULTS / f"{module}{suffix}.json"
    if argv is None and os.environ.get("OMP_NUM_THREADS") != str(arguments.threads):
        threads = {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        command = [sys.executable, "-m", f"benchmarks.speed.{module}", *sys.argv[1:]]
        os.execve(sys.executable, command, os.environ | threads)
    return arguments


def limit_memory(size: int = MEMORY) -> None:
    """Allocations beyond so many bytes of address space fail from now on, in this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (size if hard == resource.RLIM_INFINITY else min(size, hard), hard))


@contextmanager
def limit_seconds(seconds: float) -> Iterator[None]:
    """Raise :class:`TooSlowError` in the body after so many seconds of processor time, between two operations.

    The alarm is one of wall time: a timer of processor time makes Linux read the process's clock at ticks only.
    """
    start = time.process_time()

    def look(number: int, frame: FrameType | None) -> None:
        if time.process_time() - start > seconds:
            raise TooSlowError(f"more than {seconds:g} s of processor time for its first steps")

    old = signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, 1.0, 0.5)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, old)


def reason(error: BaseException, size: int = 160) -> str:
    """Why something does not run, in one line."""
    lines = str(error).strip().splitlines() or [""]
    text = lines[0]
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        text = f"memory: more than {MEMORY / 2**30:.0f} GiB of address space"
    elif not isinstance(error, TooSlowError | ChildError | UnaffordableError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= size else text[: size - 3] + "..."


def in_child(body: Callable[[], Mapping[str, float]], seconds: float) -> dict[str, float]:
    """Run the body in a process of its own, a fork of this one, with one thread and limits on memory and time.

    Args:
        body: returns numbers.
        seconds: processor time that it may take.

    Raises:
        ChildError: if it fails, with its reason.
    """
    import torch

    reading, writing = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if not child:
        os.close(reading)
        try:
            torch.set_num_threads(1)  # a fork lacks its parent's other threads and would wait for them for ever
            limit_memory()
            with limit_seconds(seconds):
                answer = {"found": dict(body())}
        except BaseException as error:  # noqa: BLE001 - the parent hears of it
            answer = {"error": reason(error)}
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as stream:
        text = stream.read()
    _, status = os.waitpid(child, 0)
    if not text:
        raise ChildError(f"its process ended with status {status}")
    answer = json.loads(text)
    if "error" in answer:
        raise ChildError(answer["error"])
    return answer["found"]


def resident() -> float:
    """Bytes that this process holds in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return float(pages * resource.getpagesize())


def peak() -> float:
    """The most bytes that this process has ever held in memory."""
    return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> None:
    """Give freed memory back and let :func:`peak` begin anew (on Linux)."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def clock() -> str:
    """What a call is measured in: with several threads, which wait for each other at work, elapsed time."""
    return "processor time" if os.environ.get("OMP_NUM_THREADS") == "1" else "elapsed time"


def now() -> float:
    """Seconds by that clock, from an arbitrary zero."""
    return time.process_time() if clock() == "processor time" else time.perf_counter()


def call_seconds(body: Callable[[], Any], repeats: int = 1, finish: Callable[[], Any] | None = None) -> float:
    """Seconds of a call by the :func:`clock`, averaged over the repeats.

    With ``finish``, which waits for a device, elapsed time between two moments at which that is idle.
    """
    read = now if finish is None else time.perf_counter
    wait = finish or (lambda: None)
    wait()
    start = read()
    for _ in range(repeats):
        body()
    wait()
    return (read() - start) / repeats


Timer = Callable[[], float | None]


def in_turn(
    timers: Mapping[str, Timer], rounds: int, row_seconds: Mapping[str, float]
) -> dict[str, list[float | None]]:
    """Every timer once per round, each round beginning with another one.

    A timer that has used more processor time than its ``row_seconds``, of all threads, sits out the other rounds.

    Returns:
        What each timer returned, ``None`` for rounds that it sat out.
    """
    names = list(timers)
    found: dict[str, list[float | None]] = {name: [] for name in names}
    spent = dict.fromkeys(names, 0.0)
    for number in range(rounds):
        shift = (number * max(1, len(names) // max(1, rounds))) % max(1, len(names))
        for name in names[shift:] + names[:shift]:
            if spent[name] > row_seconds[name]:
                found[name].append(None)
                continue
            start = time.process_time()
            found[name].append(timers[name]())
            spent[name] += time.process_time() - start
    return found


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    import numpy as np

    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
    return float(low), float(middle), float(high)


def short(value: float) -> float:
    """Four significant digits."""
    return float(f"{value:.4g}")


WITH_QUARTILES = 3
"""References whose ratios are kept as median, lower and upper quartile; of the others the median."""


def lines_of(times: Mapping[str, Sequence[float | None]], references: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Milliseconds and ratios of all variants.

    Args:
        times: seconds of every round; ``None`` for a round that was left out.
        references: variants that the others are compared with, the plain one first. Ratios are taken within rounds;
            those to the first :data:`WITH_QUARTILES` are kept with their quartiles.
    """
    lines = {}
    for name, values in times.items():
        low, middle, high = quartiles([1e3 * value for value in values if value is not None])
        line: dict[str, Any] = {
            "ms": short(middle),
            "quartiles": [short(low), short(high)],
            "n": sum(value is not None for value in values),
            "ratio": {},
        }
        for reference in references:
            pairs = zip(values, times.get(reference, ()), strict=False)
            ratios = [value / base for value, base in pairs if value is not None and base is not None]
            if ratios:
                low, middle, high = quartiles(ratios)
                found = [short(middle), short(low), short(high)]
                line["ratio"][reference] = found if reference in references[:WITH_QUARTILES] else found[:1]
        lines[name] = line
    return lines


def machine() -> dict[str, Any]:
    """Versions, processor and load, for the record."""
    from benchmarks.cells import environment

    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2] for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0].strip() if names else model
    return environment() | {
        "processor": model,
        "cores": os.cpu_count(),
        "load": short(os.getloadavg()[0]),
        "clock": clock(),
    }


def cuda() -> dict[str, Any]:
    """The GPU, for the record."""
    import torch

    return {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "clock": "elapsed time"}


def write(module: str, arguments: Any, case: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Add what was measured on a network to the file of results, rows in their order, and return all of the file."""
    from benchmarks.cells import read_cell, write_cell
    from benchmarks.speed.peers import peer_versions

    options = [f"--cases {case}"] if "cases" in arguments else []
    options += [shlex.join(["--rows", *arguments.rows])] if getattr(arguments, "rows", None) else []
    options += [f"--rounds {arguments.rounds}"] if "rounds" in arguments else []
    options += [f"--threads {arguments.threads}"]
    on_cuda = getattr(arguments, "device", "cpu") != "cpu"
    options += [f"--device {arguments.device}"] if on_cuda else []
    options += [f"--row-seconds {arguments.row_seconds:g}"] if "row_seconds" in arguments else []
    options += [f"--{name}" for name in ("short", "tiny") if getattr(arguments, name, False)]
    path = Path(arguments.results)
    found = read_cell(path) or {}
    found[case] = dict(content) | {
        "command": " ".join([f"python -m benchmarks.speed.{module}", *options]),
        "environment": machine() | (cuda() if on_cuda else {}) | {"peers": peer_versions()},
    }
    write_cell(path, found, sort_keys=False)
    return found
