"""What all questions do: ready the variants, go through the networks, write and print."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.speed.cases import CASES, LARGE, TINY, Case
from benchmarks.speed.measuring import limit_seconds, reason, write
from benchmarks.speed.peers import NotInstalledError

Measure = Callable[[Case, Any], Mapping[str, Any]]
"""A network and the command line to what is written: ``lines`` and more."""


def ready(
    builders: Mapping[str, Callable[[], Callable[[], Any]]], seconds: float
) -> tuple[dict[str, Any], dict[str, str]]:
    """Variants that have run once, and why the others cannot.

    Args:
        builders: of the variants.
        seconds: processor time that building and the first run may take.
    """
    works: dict[str, Callable[[], Any]] = {}
    refused: dict[str, str] = {}
    for name, build in builders.items():
        try:
            with limit_seconds(seconds), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work = build()
                work()
        except Exception as error:  # noqa: BLE001 - whatever a row cannot do is what its line says
            refused[name] = str(error) if isinstance(error, NotInstalledError) else reason(error)
        else:
            works[name] = work
    return works, refused


def over_cases(
    module: str,
    arguments: argparse.Namespace,
    measure: Measure,
    show: Callable[[Mapping[str, Any]], Sequence[str]],
    *,
    keep: bool = True,
) -> dict[str, Any]:
    """Measure every network that is asked for; print its table and, to ``keep`` it, write it. Returns their lines."""
    on_cuda = getattr(arguments, "device", "cpu") != "cpu"
    cases = TINY if arguments.tiny else LARGE if on_cuda else CASES
    found = {}
    for name in arguments.cases or cases:
        content = measure(cases[name], arguments)
        if keep:
            write(module, arguments, name, content)
        print("\n".join(["", cases[name].title, "", *show(content), ""]), flush=True)
        found[name] = content["lines"]
    return found
