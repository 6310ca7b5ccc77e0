"""Which processes train copies of one model, and the few collectives they need."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vogn.distributed.sharding import is_sharded

SampleSync = Literal["shared", "independent"]
ProcessGroupChoice = Literal["auto"] | None | Any


def inner_module(params: Any) -> Any:
    """The module inside ``DistributedDataParallel``; anything else unchanged.

    Names, noise and checkpoints are then those of a run in a single process.
    """
    return params.module if isinstance(params, DistributedDataParallel) else params


def has_static_graph(outputs: Tensor) -> bool:
    """Whether a ``DistributedDataParallel`` with ``static_graph=True`` stands right behind network outputs."""
    nodes: list[Any] = [outputs.grad_fn]
    for _ in range(NODES_BEHIND_OUTPUTS):
        node = nodes.pop(0) if nodes else None
        if node is None:
            continue
        if node.name() == "_DDPSinkBackward":
            return bool(node.ddp_weakref().static_graph)
        nodes += [parent for parent, _ in node.next_functions]
    return False


NODES_BEHIND_OUTPUTS = 16
"""How far :func:`has_static_graph` looks: reshapes and selections may stand between the wrapper and the loss."""


class Replicas:
    """The processes that train copies of one model.

    Args:
        model: what the user passed as ``params``; a ``DistributedDataParallel`` brings its group along.
        process_group: ``"auto"``: the model's group, else the default group if ``torch.distributed`` is initialised,
            else this process alone. ``None``: this process alone. Otherwise a ``torch.distributed.ProcessGroup``.
        sample_sync: ``"shared"``: all ranks draw the same weights. ``"independent"``: each its own.

    Raises:
        ValueError: if an option is unknown, or keeps the ranks of a ``DistributedDataParallel`` apart.

    Copies of an optimizer share this object; a pickled one comes back with ``process_group="auto"``.
    """

    def __init__(
        self, model: Any = None, process_group: ProcessGroupChoice = "auto", sample_sync: SampleSync = "shared"
    ) -> None:
        if sample_sync not in ("shared", "independent"):
            raise ValueError(f"sample_sync={sample_sync!r} is unknown; choose 'shared' or 'independent'")
        if isinstance(process_group, str) and process_group != "auto":
            raise ValueError(
                f"process_group={process_group!r} is unknown; give 'auto', None (this process alone) or a ProcessGroup"
            )
        self._wrapper: Callable[[], Any] = lambda: None
        self._choice = process_group
        if isinstance(model, DistributedDataParallel):
            if process_group is None:
                raise ValueError(
                    "process_group=None goes with processes that train apart, but DistributedDataParallel averages "
                    "their gradients; leave process_group out"
                )
            self._wrapper = weakref.ref(model)
            self._choice = model.process_group if process_group == "auto" else process_group
        self.sample_sync: SampleSync = sample_sync

    def __deepcopy__(self, memo: dict[int, Any]) -> Replicas:
        return self

    def __reduce__(self) -> tuple[Callable[..., Replicas], tuple[Any, ...]]:
        return Replicas, (None, None if self._choice is None else "auto", self.sample_sync)

    @property
    def group(self) -> Any:
        """The process group, or ``None`` where there is none."""
        if not isinstance(self._choice, str):
            return self._choice
        return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None

    @property
    def size(self) -> int:
        """Number of processes, >= 1."""
        group = self.group
        return 1 if group is None else dist.get_world_size(group)

    @property
    def rank(self) -> int:
        """Index of this process, in [0, size)."""
        group = self.group
        return 0 if group is None else dist.get_rank(group)

    @property
    def noise_rank(self) -> int:
        """The coordinate ``rank`` of this process's noise: 0 everywhere if the noise is shared."""
        return self.rank if self.sample_sync == "independent" else 0

    def check_join(self) -> None:
        """Raise if the model trains inside ``torch.distributed.algorithms.Join``.

        Raises:
            RuntimeError: on all ranks, in the first step.
        """
        wrapper = self._wrapper()
        if wrapper is not None and wrapper._join_config.enable:
            raise RuntimeError(
                "opt.step() cannot run inside Join: a rank that has run out of batches would not take part in the "
                "reduction of the evidence. Give every rank equally many batches, for example with "
                "DistributedSampler(..., drop_last=True)"
            )

    def check_shards(self, parameters: Iterable[Tensor], *, has_model: bool) -> None:
        """Raise unless sharded parameters are sharded over exactly these processes.

        Args:
            parameters: of the optimizer.
            has_model: whether the optimizer knows the model.

        Raises:
            ValueError: if the processes are others.
            TypeError: if the optimizer does not know the model.
        """
        sharded = [parameter for parameter in parameters if is_sharded(parameter)]
        if not sharded:
            return
        if not has_model:
            raise TypeError("with fully_shard the optimizer needs the model itself: pass the model, not its parameters")
        shards = sharded[0].device_mesh.size()  # type: ignore[attr-defined]
        if shards != self.size:
            raise ValueError(
                f"the parameters are sharded over {shards} processes, but the optimizer's process_group has "
                f"{self.size}: pass the group of the mesh, process_group=mesh.get_group()"
            )

    # ------------------------------------------------------------------ rows of the global batch

    def sharded(self, draw: Callable[[Tensor], Tensor], rows: Tensor, dim: int) -> Tensor:
        """What ``draw`` gives to this process's rows as part of the global batch.

        Args:
            draw: a random function whose output depends, up to the randomness, elementwise on the rows.
            rows: this process's rows, in dimension 0.
            dim: dimension of the output that holds the rows.

        With shared noise and equally many rows on every rank, the ranks together draw what one process draws on the
        batches concatenated in the order of ranks; this costs ``size`` times the drawing and no communication. With
        unequal numbers of rows every draw still has its own distribution, but draws on two ranks may be dependent.
        """
        size = self.size if self.sample_sync == "shared" else 1
        if size == 1:
            return draw(rows)
        return draw(torch.cat([rows] * size)).chunk(size, dim)[self.rank]

    # ------------------------------------------------------------------ collectives

    def all_gather_numbers(self, numbers: Sequence[int], device: torch.device) -> list[list[int]]:
        """Everyone's numbers, by rank; every rank gives equally many."""
        mine = torch.tensor(numbers, dtype=torch.int64, device=device)
        everyones = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(everyones, mine, group=self.group)
        return torch.stack(everyones).tolist()

    def all_gather_objects(self, thing: Any) -> list[Any]:
        """Everyone's picklable thing, by rank."""
        everyones: list[Any] = [None] * self.size
        dist.all_gather_object(everyones, thing, group=self.group)
        return everyones

    def all_gather_flat(self, flat: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """Everyone's vector, by rank; ``sizes`` are their lengths."""
        longest = max(sizes)
        padded = nn.functional.pad(flat, (0, longest - flat.numel()))
        everyones = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(everyones, padded, group=self.group)
        return [vector[:size] for vector, size in zip(everyones, sizes, strict=True)]

    def average(self, number: Tensor) -> Tensor:
        """The mean of a number over all ranks."""
        if self.size == 1:
            return number
        total = number.clone()
        self.all_reduce(total)
        return total / self.size

    def all_reduce(self, tensor: Tensor) -> None:
        """Sum over all ranks, in place."""
        dist.all_reduce(tensor, group=self.group)
