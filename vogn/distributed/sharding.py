"""Parameters of which every process holds a shard (``torch.distributed.fsdp.fully_shard``).

Arithmetic is done on whole tensors that every process has; what is written back is this process's shard.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is a ``DTensor``."""
    # a tensor cannot be one before the module is there, and importing it takes as long as importing torch
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


def whole(tensor: Any) -> Tensor:
    """The tensor with the shards of all processes; a collective if it is sharded, else the tensor itself."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def own_shard(tensor: Any) -> Tensor:
    """This process's shard, or the tensor itself; the shard's version counts changes in place."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def placed_like(parameter: Any, value: Tensor) -> Tensor:
    """A whole tensor, equal on all processes, placed as a parameter is. No communication."""
    if not is_sharded(parameter):
        return value
    tensors = sys.modules["torch.distributed.tensor"]
    mesh = parameter.device_mesh
    everywhere = tensors.DTensor.from_local(value, mesh, [tensors.Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=parameter.placements)


def reshard(model: nn.Module | None, parameters: Iterable[Tensor]) -> None:
    """Drop gathered copies of sharded parameters, which would hide a change of the shards.

    The outermost sharded module keeps its copy after a forward pass without a backward.
    """
    if model is None or not any(is_sharded(parameter) for parameter in parameters):
        return
    sharded_type = sys.modules["torch.distributed.fsdp"].FSDPModule
    for module in model.modules():
        if isinstance(module, sharded_type):
            module.reshard()
