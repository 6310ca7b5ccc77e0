"""Trained networks and their posteriors on disk, for studies that look at them again. They are not committed."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import nn

from vogn import load_posterior
from vogn.posterior import Posterior


def network_path(directory: Path, study: str, method: str, seed: int) -> Path:
    """Where the network of one final cell is; beside it the posterior, where there is one."""
    return directory / study / f"{method}-{seed}.safetensors"


def keep_network(path: Path, model: nn.Module, posterior: Posterior | None) -> None:
    """Write weights and buffers, and the posterior."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    if posterior is not None:
        posterior.save(_beside(path))  # type: ignore[attr-defined]


def kept_network(path: Path, model: nn.Module) -> Posterior | None:
    """Read what :func:`keep_network` wrote; weights and buffers go into the model.

    Raises:
        FileNotFoundError: if there is no such network.
    """
    model.load_state_dict(load_file(path))
    beside = _beside(path)
    return load_posterior(beside) if beside.exists() else None


def _beside(path: Path) -> Path:
    return path.with_suffix(".posterior.safetensors")
