"""The blocks of an optimizer: which parameters they hold, their state, and their tensors as block vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vogn.capture.collector import Collector
from vogn.capture.partition import Block, Partition, partition
from vogn.capture.selection import Selection
from vogn.distributed import placed_like, whole
from vogn.errors import UnsupportedObservationError
from vogn.structures.base import Structure

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient

Group = dict[str, Any]


class BlockTable:
    """Blocks with their param groups and states.

    Args:
        model: where layers are found; ``None`` for bare parameters.
        groups: the optimizer's param groups.
        state: the optimizer's state by parameter; a block's is kept under its first parameter.
        structure, fallback, kind: see :func:`vogn.capture.partition.partition`.
        prepare: makes the steps' own tensors of a block whose state is new.
        tracked: parameters that were tracked before and stay so although they are frozen now.
        without_curvature: why a group has no curvature, ``""`` if it has.
    """

    def __init__(
        self,
        model: nn.Module | None,
        groups: Iterable[Group],
        state: MutableMapping[Any, Any],
        *,
        structure: Structure | Selection,
        fallback: Structure,
        kind: Partition,
        prepare: Callable[[dict[str, Tensor], Tensor, Group], None] = lambda memory, mean, group: None,
        tracked: frozenset[Tensor] = frozenset(),
        without_curvature: Callable[[Group], str] = lambda group: "",
    ) -> None:
        self._state = state
        self.without_curvature = without_curvature
        self._groups = list(groups)
        self._prepare = prepare
        self.items: list[tuple[Block, Group]] = []
        for group in self._groups:
            wanted = [
                (name, parameter)
                for name, parameter in zip(group["param_names"], group["params"], strict=True)
                if parameter.requires_grad or parameter in tracked
            ]
            blocks = partition(model, wanted, structure=structure, fallback=fallback, kind=kind)
            self.items += [(block, group) for block in blocks]
        self._group_of = {block: group for block, group in self.items}
        self.tracked = frozenset(parameter for block in self.blocks for parameter in block.parameters)

    @property
    def blocks(self) -> list[Block]:
        """All blocks."""
        return [block for block, _ in self.items]

    def __iter__(self) -> Iterator[tuple[Block, Group]]:
        return iter(self.items)

    def outdated(self) -> bool:
        """Whether a parameter has been unfrozen since the table was made."""
        return any(p.requires_grad and p not in self.tracked for group in self._groups for p in group["params"])

    def forget_changed(self, old: BlockTable) -> None:
        """Drop the states of blocks that hold other parameters than in ``old``: their curvature starts anew."""
        names = {block.parameters[0]: block.layout.names for block in old.blocks}
        for block in self.blocks:
            if names.get(block.parameters[0], block.layout.names) != block.layout.names:
                for parameter in block.parameters:
                    self._state.pop(parameter, None)

    def state(self, block: Block) -> dict[str, Any]:
        """``{"curvature": ..., "memory": ...}``, made at first use."""
        state = self._state[block.parameters[0]]
        if "curvature" not in state:
            state.update(self.start(block, self.mean(block)))
            for place, parameter in enumerate(block.parameters[1:], start=1):
                # distributed checkpoints want a state of every parameter
                self._state[parameter] = {"place_in_block": torch.tensor(place)}
        return state

    def start(self, block: Block, mean: Tensor) -> dict[str, Any]:
        """A new state of the block, written nowhere.

        Args:
            block: one of the table's blocks.
            mean: block vector in the curvature's dtype; on the meta device, the state takes no memory.
        """
        group = self._group_of[block]
        initial = group["initial_curvature"]
        start = 0.0 if initial == "first_batch" else float(initial)
        curvature = block.structure.init(
            block.layout.block_shape, initial=start, dtype=block.curvature_dtype, device=mean.device
        )
        memory = {
            "observations": torch.zeros((), dtype=torch.int64),
            "curvature_weight": torch.tensor(float(start > 0.0), dtype=torch.float64),
        }
        self._prepare(memory, mean, group)
        return {"curvature": curvature, "memory": memory}

    def known(self, block: Block) -> bool:
        """Whether the block's curvature is more than nothing: it has been observed, or given a start."""
        memory = self.state(block)["memory"]
        return bool(memory["observations"]) or float(memory["curvature_weight"]) > 0.0

    def due(self, block: Block, every: str) -> bool:
        """Whether this step is one of the group's ``every`` (``"observe_every"``); always before the first evidence,
        never where there is no curvature."""
        group = self._group_of[block]
        if self.without_curvature(group):
            return False
        return not self.state(block)["memory"]["observations"] or group["steps_done"] % group[every] == 0

    def gradient(self, block: Block) -> Tensor:
        """The packed ``.grad``; a parameter without one counts as zero.

        Raises:
            UnsupportedObservationError: for a sparse gradient.
        """
        named = {}
        for name, parameter in zip(block.layout.names, block.parameters, strict=True):
            grad = parameter.grad
            if grad is not None and grad.is_sparse:
                raise UnsupportedObservationError(f"parameter {name!r} has a sparse gradient; use a dense one")
            named[name] = whole(torch.zeros_like(parameter) if grad is None else grad.detach())
        return block.layout.pack(named).to(block.curvature_dtype)

    def mean(self, block: Block) -> Tensor:
        """The packed parameters."""
        named = {n: whole(p.detach()) for n, p in zip(block.layout.names, block.parameters, strict=True)}
        return block.layout.pack(named).to(block.curvature_dtype)

    def write(self, block: Block, mean: Tensor) -> None:
        """Put a block vector into the parameters that have a gradient."""
        values = block.layout.unpack(mean)
        for name, parameter in zip(block.layout.names, block.parameters, strict=True):
            if parameter.grad is not None:
                parameter.copy_(placed_like(parameter, values[name]))

    def restore_dtypes(self, saved: Mapping[str, Any]) -> None:
        """Undo ``load_state_dict``'s cast of every state tensor to its parameter's dtype."""
        for group, saved_group in zip(self._groups, saved["param_groups"], strict=True):
            for parameter, key in zip(group["params"], saved_group["params"], strict=True):
                entry = saved["state"].get(key)
                if entry is None:
                    continue
                if "curvature" not in entry:
                    self._state[parameter] = {name: tensor.detach().clone() for name, tensor in entry.items()}
                    continue
                curvature = {
                    name: tensor.detach().to(parameter.device, copy=True) for name, tensor in entry["curvature"].items()
                }
                memory = {name: tensor.detach().clone() for name, tensor in entry["memory"].items()}
                memory = {k: v.to(parameter.device) if v.ndim else v for k, v in memory.items()}
                self._state[parameter] = {"curvature": curvature, "memory": memory}


def new_table(optimizer: NaturalGradient, *, tracked: frozenset[Tensor] = frozenset()) -> BlockTable:
    """The blocks of an optimizer's groups; nothing of the optimizer is changed.

    Args:
        optimizer: whose groups are cut into blocks.
        tracked: parameters that were tracked before and stay so although they are frozen now.
    """

    def prepare(memory: dict[str, Tensor], mean: Tensor, group: Group) -> None:
        for step in optimizer.chain:
            step.prepare(memory, mean, group)

    return BlockTable(
        optimizer._model,
        optimizer.param_groups,
        optimizer.state,
        structure=optimizer.selection,
        fallback=optimizer.fallback,
        kind=optimizer.partition,
        prepare=prepare,
        tracked=tracked,
        without_curvature=lambda group: without_curvature(optimizer, group),
    )


def without_curvature(optimizer: NaturalGradient, group: Mapping[str, Any]) -> str:
    """Why a group has no curvature, ``""`` if it has: what the steps of the chain say."""
    return next((reason for step in optimizer.chain if (reason := step.without_curvature(group))), "")


def new_collector(optimizer: NaturalGradient, table: BlockTable) -> Collector:
    """The collector of an optimizer's blocks."""
    return Collector(
        table.blocks,
        optimizer.statistics,
        state_of=lambda block: table.state(block)["curvature"],
        gradient_of=table.gradient,
        loss_reduction=optimizer.loss_reduction,
        loss_scale=lambda: 1.0 if optimizer.grad_scaler is None else float(optimizer.grad_scaler.get_scale()),
        replicas=optimizer.replicas,
    )
