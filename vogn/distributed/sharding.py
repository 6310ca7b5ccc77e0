"""Parameters of which every process holds a shard (``torch.distributed.fsdp.fully_shard``)."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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


def with_shard(parameter: Any, shard: Tensor) -> Tensor:
    """A tensor placed as a sharded parameter is, of which this process holds the given shard. No communication."""
    tensors = sys.modules["torch.distributed.tensor"]
    placed: Tensor = tensors.DTensor.from_local(
        shard,
        parameter.device_mesh,
        parameter.placements,
        run_check=False,
        shape=parameter.shape,
        stride=parameter.stride(),
    )
    return placed


@dataclass(frozen=True)
class Span:
    """The slice of a tensor that one process holds: ``[start, start + length)`` of dimension ``dim``.

    Args:
        dim, start, length: the slice.
        counts: ``False`` if another process, which counts, holds the same slice (meshes with replicas).
    """

    dim: int
    start: int
    length: int
    counts: bool


def is_cut_evenly(parameters: Sequence[Tensor], processes: int) -> bool:
    """Whether :func:`spans` can tell who holds what: every parameter cut once, all over one mesh of all processes."""
    if not parameters or not all(is_sharded(parameter) for parameter in parameters):
        return False
    cut, whole_ = (getattr(sys.modules["torch.distributed.tensor"], name) for name in ("Shard", "Replicate"))
    meshes = {parameter.device_mesh for parameter in parameters}  # type: ignore[attr-defined]
    kinds = [[type(place) for place in parameter.placements] for parameter in parameters]  # type: ignore[attr-defined]
    known = all(kind.count(cut) == 1 and kind.count(whole_) == len(kind) - 1 for kind in kinds)
    return known and len(meshes) == 1 and meshes.pop().size() == processes


def spans(parameter: Any, ranks: Sequence[int]) -> list[Span]:
    """What each process holds of a parameter for which :func:`is_cut_evenly` is true.

    Args:
        parameter: its placement.
        ranks: the processes, by their rank in the default group.
    """
    cut = sys.modules["torch.distributed.tensor"].Shard
    mesh = parameter.device_mesh
    axis = next(k for k, place in enumerate(parameter.placements) if type(place) is cut)
    dim = parameter.placements[axis].dim % parameter.ndim
    size = parameter.shape[dim]
    longest = -(-size // mesh.size(axis))
    out = []
    for rank in ranks:
        place = (mesh.mesh == rank).nonzero()[0].tolist()
        start = min(place[axis] * longest, size)
        others = [coordinate for k, coordinate in enumerate(place) if k != axis]
        out.append(Span(dim, start, min(longest, size - start), not any(others)))
    return out


def reshard(model: nn.Module | None, parameters: Iterable[Tensor]) -> None:
    """Drop gathered copies of sharded parameters, which would hide a change of the shards.

    The outermost sharded module keeps its copy after a forward pass without a backward.
    """
    tensors = sys.modules.get("torch.distributed.tensor")
    if model is None or tensors is None or not any(isinstance(parameter, tensors.DTensor) for parameter in parameters):
        return
    sharded_type = sys.modules["torch.distributed.fsdp"].FSDPModule
    for module in model.modules():
        if isinstance(module, sharded_type):
            module.reshard()
