"""Tables and plots of what was measured: docs/speed.md and docs/speed/*.png.

python -m benchmarks.speed.report
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def table(lines: Mapping[str, Any], baseline: str, more: Sequence[str] = ()) -> list[str]:
    """Lines of a markdown table: milliseconds, ratios to the baseline, and further columns."""
    out = [
        "| " + " | ".join(["row", "ms (quartiles)", f"x {baseline} (quartiles)", *more, "n"]) + " |",
        "|---" * (4 + len(more)) + "|",
    ]
    for name, line in lines.items():
        if "skipped" in line:
            out.append(f"| {name} | | {line['skipped']} |" + " |" * (1 + len(more)))
            continue
        low, high = line["quartiles"]
        ratio = ""
        if baseline in line["ratio"]:
            ratio = "{:.2f} ({:.2f}, {:.2f})".format(*line["ratio"][baseline])
        cells = [name, f"{line['ms']:.4g} ({low:.4g}, {high:.4g})", ratio, *(f"{line[key]:.4g}" for key in more)]
        out.append("| " + " | ".join([*cells, str(line["n"])]) + " |")
    return out
