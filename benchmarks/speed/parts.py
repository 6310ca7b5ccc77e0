"""Where does a training step spend its time?

Time of parts of a step (processor time, with several threads elapsed time), by clocks around the functions that do
them; medians over steps. What no part holds (Python, copies, the network's own loss) is the rest. The kinds of steps of
a schedule are shown one by one.

    python -m benchmarks.speed.parts --cases mlp --rows "ivon (v" "vogn (v"
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

import vogn
from benchmarks.speed.cases import Case
from benchmarks.speed.contenders import Row, Runner, chosen, rows_of
from benchmarks.speed.measuring import arguments_of, limit_memory, now, quartiles, short
from benchmarks.speed.questions import over_cases
from vogn.kernels import native
from vogn.optim.contexts import SampledContexts
from vogn.optim.one_pass import OnePass

ROWS = ("SGD", "AdamW", "ivon (v", "vadam (v", "vogn (v", "slang rank 8 (v", "kfac 10/100 (d")
"""Beginnings of the rows that are looked at if none are named."""
FUNCTIONS: Sequence[tuple[Any, str, str]] = (
    (native, "draw", "draw"),
    (native, "fill_normal", "noise"),
    (SampledContexts, "leave", "mean put back"),
    (OnePass, "__call__", "pass that looks"),
    (OnePass, "write", "pass that writes"),
    (torch.nn.Module, "__call__", "forward"),
    (torch.Tensor, "backward", "backward"),
    (torch.optim.SGD, "step", "plain step"),
    (torch.optim.AdamW, "step", "plain step"),
)
"""Owner, name and label of the functions that are timed."""
METHODS = {
    "displace": "displacement",
    "observe": "evidence",
    "observe_displacement": "evidence",
    "update": "update",
    "refresh": "refresh",
    "solve": "solve",
}
"""Those of the structures."""


class Clock:
    """Seconds by label; a part inside of another is taken from it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner = [0.0]

    def around(self, function: Callable[..., Any], label: str) -> Callable[..., Any]:
        """The function, timed."""

        def timed(*args: Any, **options: Any) -> Any:
            start = now()
            self._inner.append(0.0)
            try:
                return function(*args, **options)
            finally:
                spent = now() - start
                self.seconds[label] = self.seconds.get(label, 0.0) + spent - self._inner.pop()
                self._inner[-1] += spent

        return timed


@contextmanager
def clocks(optimizer: Any) -> Iterator[Clock]:
    """Clocks around all parts, while the body runs."""
    clock = Clock()
    wrapped = list(FUNCTIONS)
    if isinstance(optimizer, vogn.NaturalGradient):
        kinds = {type(block.structure) for block in optimizer._build()[0].blocks}
        wrapped += [(kind, name, label) for kind in kinds for name, label in METHODS.items()]
    with ExitStack() as stack:
        for owner, name, label in wrapped:
            own, function = name in vars(owner), getattr(owner, name)
            setattr(owner, name, clock.around(function, label))
            stack.callback(setattr, owner, name, function) if own else stack.callback(delattr, owner, name)
        yield clock


def parts(runner: Runner, kind: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of a kind, and of its parts."""
    if isinstance(runner.optimizer, vogn.NaturalGradient):
        for group in runner.optimizer.param_groups:
            group.update(runner.kinds[kind][1])
    runner.step()
    found: list[dict[str, float]] = []
    for _ in range(rounds):
        with clocks(runner.optimizer) as clock:
            start = now()
            runner.step()
            whole = now() - start
        found.append(clock.seconds | {"all": whole, "rest": whole - sum(clock.seconds.values())})
    labels = sorted(set().union(*found) - {"all", "rest"}, key=lambda label: -sum(x.get(label, 0.0) for x in found))
    median = {name: short(quartiles([1e3 * x.get(name, 0.0) for x in found])[1]) for name in ("all", *labels, "rest")}
    return {"ms": median.pop("all"), "parts": median}


def measure(case: Case, arguments: Any) -> dict[str, Any]:
    """The parts of all rows."""
    lines: dict[str, Any] = {}
    rows: Mapping[str, Row] = chosen(rows_of(case), list(arguments.rows or ROWS), short=False)
    for name, row in rows.items():
        runner = Runner(case, row)
        runner.warm_up()
        for kind in runner.kinds:
            label = name if len(runner.kinds) == 1 else f"{name}, {kind}"
            lines[label] = parts(runner, kind, arguments.rounds)
        print(f"  {name}", file=sys.stderr, flush=True)
    return {"lines": lines}


def parts_table(lines: Mapping[str, Any]) -> list[str]:
    """Lines of a markdown table."""
    out = ["| row | ms | of these |", "|---|---|---|"]
    for name, line in lines.items():
        found = ", ".join(
            f"{label} {value:.3g}" for label, value in line["parts"].items() if value >= 0.005 * line["ms"]
        )
        out.append(f"| {name} | {line['ms']:.4g} | {found} |")
    return out


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    arguments = arguments_of("parts", __doc__, argv, "rounds", "cases", "rows")
    limit_memory()
    return over_cases("parts", arguments, measure, lambda content: parts_table(content["lines"]))


if __name__ == "__main__":
    main()
