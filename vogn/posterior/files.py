"""Posterior files: tensors in safetensors, everything else as JSON in the file's metadata."""

from __future__ import annotations

import json
import os
import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vogn.errors import CheckpointError

SCHEMA_VERSION = 1
"""Raised whenever a file of the old schema could be misread by the new code or the other way round."""

Content = tuple[dict[str, Any], dict[str, Tensor]]
"""Plain description and named tensors of a posterior."""

P = TypeVar("P", bound="SavedPosterior")


class SavedPosterior(ABC):
    """A posterior that is its :data:`Content`, and can be written to a file and read back in another process.

    Class attributes:
        FORMAT: name of the kind in the file's header.
    """

    FORMAT: ClassVar[str]

    @abstractmethod
    def content(self) -> Content:
        """What :meth:`from_content` needs: data that JSON can hold, and tensors by name."""

    @classmethod
    @abstractmethod
    def from_content(cls: type[P], description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> P:
        """The posterior with this content.

        Raises:
            KeyError, TypeError, ValueError, ArithmeticError: if it is no content of such a posterior.
        """

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; it appears complete or not at all. See :mod:`vogn.posterior.files`.

        Raises:
            FileNotFoundError: if the folder does not exist.
            ValueError: if the likelihood's description is not plain data.
        """
        write_file(path, self.FORMAT, *self.content())

    @classmethod
    def load(cls: type[P], path: str | Path, device: torch.device | str = "cpu") -> P:
        """Read what :meth:`save` wrote, bit for bit.

        Raises:
            FileNotFoundError: if there is no such file.
            CheckpointError: if the file is damaged, no posterior of this kind, or of a newer schema.
        """
        return read_posterior(path, {cls.FORMAT: cls}, device)


def write_file(path: str | Path, kind: str, description: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write the file beside its destination, then move it there, so that a crash leaves no half-written file.

    Raises:
        FileNotFoundError: if the folder does not exist.
        ValueError: if the description is not plain data.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"cannot write {path}: there is no folder {path.parent}; make it first")
    try:
        text = json.dumps(description)
    except TypeError as error:
        raise ValueError(f"the posterior's likelihood must be plain data (numbers, strings, lists): {error}") from error
    metadata = {"format": kind, "schema_version": str(SCHEMA_VERSION), "description": text}
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(
            {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, scratch, metadata
        )
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def read_posterior(
    path: str | Path, kinds: Mapping[str, type[P]], device: torch.device | str = "cpu"
) -> P:
    """Read what :func:`write_file` wrote.

    Args:
        path: of the file.
        kinds: the kinds of posteriors that it may hold, by name.
        device: where the tensors shall live.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, not a posterior of these kinds, or of a newer schema.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no posterior file at {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            _check_header(path, metadata, kinds)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error
    try:
        return kinds[metadata["format"]].from_content(json.loads(metadata["description"]), tensors)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _check_header(path: Path, metadata: Mapping[str, str], kinds: Mapping[str, Any]) -> None:
    if metadata.get("format") not in kinds:
        raise CheckpointError(
            f"{path} is not a posterior file: its format is {metadata.get('format')!r}, expected "
            f"{' or '.join(map(repr, sorted(kinds)))}"
        )
    version = metadata.get("schema_version", "")
    if not version.isdecimal():
        raise CheckpointError(f"{path} is damaged: schema version {version!r} is not a number")
    if int(version) > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version}, this library reads up to {SCHEMA_VERSION}; update the library"
        )
