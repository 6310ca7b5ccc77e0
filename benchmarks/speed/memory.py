"""What does an optimizer hold between steps, and what is the most that a step holds?

Every row runs three steps in a process of its own (a fork of one that has computed nothing): ``state`` are the bytes of
all tensors that the optimizer holds afterwards, per parameter; ``peak`` is the most memory that the process held from
building the network on, minus what it held before, weights and batch included. Rows are those of ``step_time``.

    python -m benchmarks.speed.memory
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.speed.cases import Case
from benchmarks.speed.contenders import SGD, Row, Runner, chosen, rows_of
from benchmarks.speed.measuring import ChildError, arguments_of, in_child, peak, reset_peak, resident, short
from benchmarks.speed.questions import over_cases
from benchmarks.speed.report import memory_table

STEPS = 3


def tensors(value: Any, seen: set[int] | None = None) -> Iterator[Tensor]:
    """All tensors in nested containers and in the attributes of objects, networks left out."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in list(value.values()):
            yield from tensors(item, seen)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from tensors(item, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | type | FunctionType | ModuleType):
        yield from tensors(vars(value), seen)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the tensors that an optimizer holds, parameters and gradients left out and every storage once."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    own = {p.untyped_storage().data_ptr() for p in parameters}
    own |= {p.grad.untyped_storage().data_ptr() for p in parameters if p.grad is not None}
    found = {}
    for tensor in tensors(vars(optimizer)):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


def hold(case: Case, row: Row) -> Mapping[str, float]:
    """Bytes of three steps of a row, in this process."""
    reset_peak()
    before = resident()
    runner = Runner(case, row)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(STEPS):
            runner.step()
    parameters = sum(p.numel() for p in runner.model.parameters())
    return {"peak": peak() - before, "state": state_bytes(runner.optimizer) / parameters, "parameters": parameters}


def measure(case: Case, arguments: Any) -> dict[str, Any]:
    """The lines of a network."""
    lines: dict[str, dict[str, Any]] = {}
    for name, row in chosen(rows_of(case), arguments.rows, arguments.short).items():
        try:
            found = in_child(lambda row=row: hold(case, row), 30.0)
        except ChildError as error:
            lines[name] = {"skipped": str(error)}
            continue
        base = lines[SGD]["peak MB"] if SGD in lines else short(found["peak"] / 1e6)
        lines[name] = {
            "state bytes per parameter": short(found["state"]),
            "peak MB": short(found["peak"] / 1e6),
            "x SGD": short(found["peak"] / 1e6 / base),
        }
    return {"lines": lines}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Command line."""
    arguments = arguments_of("memory", __doc__, argv, "cases", "rows")
    return over_cases("memory", arguments, measure, lambda content: memory_table(content["lines"]))


if __name__ == "__main__":
    main()
