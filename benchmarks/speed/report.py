"""Tables and plots of what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.speed.cases import Case


def print_lines(found: Mapping[str, Any], cases: Mapping[str, Case]) -> None:
    """A table per network."""
    for case, lines in found["lines"].items():
        print(f"\n{cases[case].title}\n")
        print("\n".join(table(lines, found["baseline"])))


def table(lines: Mapping[str, Any], baseline: str) -> list[str]:
    """Lines of a markdown table: milliseconds and ratios to the baseline."""
    out = [f"| row | ms (quartiles) | x {baseline} (quartiles) | n |", "|---|---|---|---|"]
    for name, line in lines.items():
        if "skipped" in line:
            out.append(f"| {name} | | {line['skipped']} | |")
            continue
        low, high = line["quartiles"]
        middle, below, above = line["ratio"][baseline]
        out.append(
            f"| {name} | {line['ms']:.4g} ({low:.4g}, {high:.4g}) | {middle:.2f} ({below:.2f}, {above:.2f}) "
            f"| {line['n']} |"
        )
    return out
