"""What does ``import vogn`` cost, beside ``import torch``? In processor time, in fresh processes, in turn.

python -m benchmarks.speed.import_time
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.speed.measuring import arguments_of, in_turn, lines_of, write
from benchmarks.speed.report import table

TORCH = "import torch"
STATEMENTS = (TORCH, "import vogn")


def seconds_of(statement: str) -> Callable[[], float]:
    """Processor time of a process that runs a statement, as the process itself sees it."""
    program = f"import time; {statement}; print(time.process_time())"
    return lambda: float(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    arguments = arguments_of("import_time", __doc__, argv, "rounds")
    timers = {statement: seconds_of(statement) for statement in STATEMENTS}
    times = in_turn(timers, arguments.rounds, dict.fromkeys(timers, 60.0))
    found = {"import": lines_of(times, [TORCH])}
    write("import_time", arguments, "import", {"lines": found["import"], "baseline": TORCH})
    print("\n".join(table(found["import"], TORCH)))
    return found


if __name__ == "__main__":
    main()
