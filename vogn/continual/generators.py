"""The states of torch's random number generators that a run reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def cuda_devices(model: nn.Module) -> list[int]:
    """Numbers of the GPUs that hold parameters of the model."""
    return sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})


def generator_states(model: nn.Module) -> dict[str, Any]:
    """States of the CPU's generator and of those of the model's GPUs, for checkpoints."""
    return {"cpu": torch.get_rng_state(), "cuda": {k: torch.cuda.get_rng_state(k) for k in cuda_devices(model)}}


def restore_generators(states: Mapping[str, Any]) -> None:
    """Undoes :func:`generator_states`. States of GPUs that this machine lacks are left alone."""
    torch.set_rng_state(states["cpu"].cpu())
    for number, state in states["cuda"].items():
        if int(number) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state.cpu(), int(number))
