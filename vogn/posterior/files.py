"""Posterior files: tensors in safetensors, everything else as JSON in the file's metadata."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from vogn.errors import CheckpointError
from vogn.linalg.layout import layout_from_dict
from vogn.posterior.block import PosteriorBlock
from vogn.structures import structure_from_dict, structure_to_dict

FORMAT = "vogn.posterior.gaussian"
SCHEMA_VERSION = 1
"""Raised whenever a file of the old schema could be misread by the new code or the other way round."""


@dataclass(frozen=True)
class PosteriorFile:
    """The contents of a posterior file; see :class:`vogn.posterior.GaussianPosterior` for the meaning."""

    blocks: tuple[PosteriorBlock, ...]
    means: dict[str, Tensor]
    likelihood: dict[str, Any] | None
    method: str


def write_file(
    path: str | Path,
    blocks: Sequence[PosteriorBlock],
    means: Mapping[str, Tensor],
    likelihood: Mapping[str, Any] | None,
    method: str,
) -> None:
    """Write the file beside its destination, then move it there, so that a crash leaves no half-written file.

    Raises:
        ValueError: if the likelihood's description is not plain data.
    """
    path = Path(path)
    tensors = {f"mean/{name}": mean for name, mean in means.items()}
    for i, block in enumerate(blocks):
        tensors.update({f"state/{i}/{key}": tensor for key, tensor in block.state.items()})
    description = {
        "method": method,
        "likelihood": None if likelihood is None else dict(likelihood),
        "means": list(means),
        "blocks": [_describe(block) for block in blocks],
    }
    try:
        text = json.dumps(description)
    except TypeError as error:
        raise ValueError(f"the posterior's likelihood must be plain data (numbers, strings, lists): {error}") from error
    metadata = {"format": FORMAT, "schema_version": str(SCHEMA_VERSION), "description": text}
    scratch = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        save_file(
            {key: tensor.detach().cpu().contiguous().clone() for key, tensor in tensors.items()}, scratch, metadata
        )
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def read_file(path: str | Path, device: torch.device | str = "cpu") -> PosteriorFile:
    """Read what :func:`write_file` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        CheckpointError: if the file is damaged, not a posterior, or of a newer schema.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no posterior file at {path}")
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            _check_header(path, metadata)
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path} is not a complete safetensors file: {error}") from error
    try:
        return _assemble(json.loads(metadata["description"]), tensors)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _describe(block: PosteriorBlock) -> dict[str, Any]:
    return {
        "name": block.name,
        "layout": block.layout.to_dict(),
        "structure": structure_to_dict(block.structure),
        "state": list(block.state),
        "shift": block.shift,
        "ess": block.ess,
        "sampled": block.sampled,
    }


def _check_header(path: Path, metadata: Mapping[str, str]) -> None:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a posterior file: its format is {metadata.get('format')!r}, expected {FORMAT!r}"
        )
    version = metadata.get("schema_version", "")
    if not version.isdecimal():
        raise CheckpointError(f"{path} is damaged: schema version {version!r} is not a number")
    if int(version) > SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {version}, this library reads up to {SCHEMA_VERSION}; update the library"
        )


def _assemble(description: dict[str, Any], tensors: Mapping[str, Tensor]) -> PosteriorFile:
    blocks = tuple(
        PosteriorBlock(
            name=entry["name"],
            layout=layout_from_dict(entry["layout"]),
            structure=structure_from_dict(entry["structure"]),
            state={key: tensors[f"state/{i}/{key}"] for key in entry["state"]},
            shift=float(entry["shift"]),
            ess=float(entry["ess"]),
            sampled=bool(entry["sampled"]),
        )
        for i, entry in enumerate(description["blocks"])
    )
    means = {name: tensors[f"mean/{name}"] for name in description["means"]}
    return PosteriorFile(blocks, means, description["likelihood"], description["method"])
