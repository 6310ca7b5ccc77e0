"""Checkpoints of a run: tensors and plain data in one file that appears complete or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vogn.posterior import checkpoint

SCHEMA_VERSION = 1
"""Raised when an older reader could misread a checkpoint."""


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """See :func:`vogn.posterior.checkpoint.write_checkpoint`."""
    checkpoint.write_checkpoint(path, content, schema=SCHEMA_VERSION)


def read_checkpoint(path: Path, device: torch.device | str) -> dict[str, Any] | None:
    """What :func:`write_checkpoint` wrote; ``None`` if there is no file. No code is unpickled.

    Raises:
        CheckpointError: if the file is damaged, or of another schema.
    """
    return checkpoint.read_checkpoint(path, device, schema=SCHEMA_VERSION, run="a continual run")
