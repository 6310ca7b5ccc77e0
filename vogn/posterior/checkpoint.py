"""Checkpoints of runs: tensors and plain data in one file that appears complete or not at all."""

from __future__ import annotations

import json
import os
import pickle
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vogn.errors import CheckpointError


def write_checkpoint(path: Path, content: Mapping[str, Any], *, schema: int) -> None:
    """Write beside the destination, flush to disk, then replace in one step.

    Args:
        path: of the file; its folder is made if need be.
        content: tensors and plain data.
        schema: version, raised when an older reader could misread the content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with scratch.open("wb") as file:
            torch.save({"schema": schema, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def read_checkpoint(path: Path, device: torch.device | str, *, schema: int, run: str) -> dict[str, Any] | None:
    """What :func:`write_checkpoint` wrote; ``None`` if there is no file. No code is unpickled.

    Args:
        path: of the file.
        device: where the tensors shall live.
        schema: the version that is wanted.
        run: what kind of run it is of, for messages.

    Raises:
        CheckpointError: if the file is damaged, or of another schema.
    """
    if not path.is_file():
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        content: Any = torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} is damaged or no checkpoint ({reason}); delete it to begin anew") from error
    if not isinstance(content, dict) or content.get("schema") != schema:
        raise CheckpointError(f"{path} is no checkpoint of this version (schema {schema}) of {run}")
    return content


def difference(
    theirs: Any,
    mine: str,
    *,
    parts: Mapping[str, str] | None = None,
    words: str = "it has {key} {theirs}, this one {mine}",
) -> str:
    """The first entry of two descriptions of runs that differs, in words.

    Args:
        theirs: the JSON of a checkpoint, or whatever stands there.
        mine: that of the present run.
        parts: entries that nobody wants to read, such as digests of data, and what is said of them.
        words: what is said of all others.
    """
    try:
        one, other = json.loads(theirs), json.loads(mine)
        key = next(key for key in other if one.get(key) != other[key])
    except (TypeError, ValueError, AttributeError, StopIteration):
        return "it is described in another way"
    return (parts or {}).get(key) or words.format(key=key, theirs=one.get(key), mine=other[key])
