"""Where a learner stands, on disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vogn.active.acquisition import Acquisition
from vogn.active.pool import Pool, checked_inputs
from vogn.errors import CheckpointError
from vogn.posterior.checkpoint import difference, read_checkpoint, write_checkpoint

SCHEMA_VERSION = 1
"""Raised when an older reader could misread a file."""
DIGEST_EXAMPLES = 100

PARTS = {part: f"its {part} is another one" for part in ("pool", "labelled", "test", "targets")}


@dataclass
class LearnerState:
    """What a learner needs to go on.

    Args:
        run: description of the run; see :func:`description`.
        numbers: of the pool's examples that were learnt from.
        pending: numbers of the present query; ``None`` between rounds.
        rows: of the result.
        method: state of the posterior method.
        noise: parameters of the likelihood.
    """

    run: str
    numbers: list[int] = field(default_factory=list)
    pending: list[int] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    method: dict[str, Any] = field(default_factory=dict)
    noise: list[Tensor] = field(default_factory=list)


def write_state(path: Path, state: LearnerState) -> None:
    """Replace the file in one step."""
    write_checkpoint(path, vars(state) | {"rows": json.dumps(state.rows)}, schema=SCHEMA_VERSION)


def read_state(path: Path, run: str) -> LearnerState | None:
    """What :func:`write_state` wrote; ``None`` if there is no file.

    Raises:
        CheckpointError: if the file is damaged, or of another run; it says what differs.
    """
    content = read_checkpoint(path, "cpu", schema=SCHEMA_VERSION, run="a learner")
    if content is None:
        return None
    del content["schema"]
    state = LearnerState(**content | {"rows": json.loads(content["rows"])})
    if state.run != run:
        other = difference(state.run, run, parts=PARTS, words="its {key} is {theirs}, here it is {mine}")
        raise CheckpointError(f"{path} is of another run: {other}; give the same arguments, or another folder")
    return state


def description(**parts: Any) -> str:
    """What must be the same for a state to fit, as JSON."""
    return json.dumps(parts, sort_keys=True)


def acquisition_settings(acquisition: Acquisition) -> dict[str, str]:
    """Name and public settings."""
    settings = {name: str(value) for name, value in vars(acquisition).items() if _is_plain(value) and name[0] != "_"}
    return {"name": type(acquisition).__name__} | settings


def pool_digest(pool: Pool) -> list[float]:
    """Numbers that tell pools apart: the length, and sums over some examples."""
    some = torch.linspace(0, len(pool) - 1, min(len(pool), DIGEST_EXAMPLES)).long()
    return [float(len(pool)), *digest(checked_inputs(pool, some))]


def digest(tensor: Tensor | None) -> list[float]:
    """Numbers that tell tensors apart: the length, the sum, and a sum that knows the order."""
    if tensor is None:
        return []
    flat = tensor.detach().cpu().flatten().double()
    return [float(len(tensor)), float(flat.sum()), float(flat @ torch.linspace(0, 1, len(flat)).double())]


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)
