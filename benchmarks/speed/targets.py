"""The ratios that are aimed at, and where the time goes in rows that miss them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.speed.contenders import ADAMW, SGD


@dataclass(frozen=True)
class Target:
    """A ratio that is aimed at.

    Args:
        question: file of results.
        case: network.
        row: what is measured.
        reference: what it is compared with.
        ratio: at most this.
        note: where the time goes if it is more.
    """

    question: str
    case: str
    row: str
    reference: str
    ratio: float
    note: str = ""


VOGN = "vogn (variational)"
GRADIENT = "forward and backward"
TARGETS = (
    Target("step_time", "resnet20", "ivon (variational)", ADAMW, 1.05),
    Target("step_time", "mlp", "ivon (variational)", ADAMW, 1.45),
    Target("step_time", "gpt", "ivon (variational)", ADAMW, 1.10),
    Target("step_time", "resnet20", "vadam (variational)", ADAMW, 1.05),
    Target("step_time", "mlp", "vadam (variational)", ADAMW, 1.45),
    Target("step_time", "gpt", "vadam (variational)", ADAMW, 1.10),
    Target("step_time", "resnet20", VOGN, SGD, 1.75),
    Target("step_time", "mlp", VOGN, SGD, 1.85),
    Target("step_time", "gpt", VOGN, SGD, 1.5),
    Target("per_example", "mlp", "vogn", GRADIENT, 1.35),
    Target("per_example", "resnet20", "vogn", GRADIENT, 1.6),
    Target("per_example", "gpt", "vogn", GRADIENT, 1.4),
    Target("step_time", "resnet20", "kfac 10/100 (deterministic)", SGD, 1.35),
    Target("step_time", "gpt", "kfac 10/100 (deterministic)", SGD, 1.3),
    Target("step_time", "resnet20", "kfac 10/100 (variational)", SGD, 1.5),
    Target("step_time", "mlp", "slang rank 8 (variational)", VOGN, 1.5),
    Target("step_time", "resnet20", "slang rank 8 (variational)", VOGN, 1.5),
    Target("step_time", "gpt", "slang rank 8 (variational)", VOGN, 1.5),
    Target("predictive", "mlp", "predict, diagonal", "32 forward passes", 1.05),
    Target("predictive", "resnet20", "predict, diagonal", "32 forward passes", 1.05),
    Target("predictive", "gpt", "predict, diagonal", "32 forward passes", 1.05),
    Target("import_time", "import", "import vogn", "import torch", 1.5),
)


def measured(target: Target, results: Mapping[str, Mapping[str, Any]]) -> tuple[float, float, float] | str:
    """The ratio and its quartiles, or why there is none."""
    line = results.get(target.question, {}).get(target.case, {}).get("lines", {}).get(target.row)
    if line is None:
        return "not measured"
    if "skipped" in line:
        return str(line["skipped"])
    found = line["ratio"].get(target.reference)
    return "not measured" if found is None else (found[0], found[1], found[2])
