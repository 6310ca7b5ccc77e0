"""Checkpoints of runs of bandits and environments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vogn.posterior import checkpoint

SCHEMA_VERSION = 1
"""Raised when an older reader could misread a checkpoint."""


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """See :func:`vogn.posterior.checkpoint.write_checkpoint`."""
    checkpoint.write_checkpoint(path, content, schema=SCHEMA_VERSION)


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What :func:`write_checkpoint` wrote; ``None`` if there is no file. No code is unpickled.

    Raises:
        CheckpointError: if the file is damaged, or of another schema.
    """
    return checkpoint.read_checkpoint(path, "cpu", schema=SCHEMA_VERSION, run="a run of vogn.rl")
