"""The blocks of an optimizer: which parameters they hold, their state, and their tensors as block vectors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vogn.capture.bundles import Bundles
from vogn.capture.collector import Collector
from vogn.capture.partition import Block, Partition, partition
from vogn.capture.selection import Selection
from vogn.distributed import Placement, Replicas, Unanimity, is_sharded, own_shard
from vogn.errors import UnsupportedObservationError
from vogn.kernels import rooms
from vogn.linalg.each import nonzero_each, numbers
from vogn.optim.placing import placements
from vogn.optim.steps import Step
from vogn.structures.base import Structure
from vogn.types import State

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient

Group = dict[str, Any]

COUNTERS = ("observations", "curvature_weight")
"""Numbers in a block's memory that every process knows, whoever owns the block."""


class BlockTable:
    """Blocks with their param groups and states.

    Args:
        model: where layers are found; ``None`` for bare parameters.
        groups: the optimizer's param groups.
        state: the optimizer's state by parameter; a block's is kept under its first parameter.
        structure, fallback, kind, rules: see :func:`vogn.capture.partition.partition`.
        chain: the steps, which prepare their own tensors of a block whose state is new.
        replicas: the processes, which may divide blocks among themselves (:mod:`vogn.optim.placing`).
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
        rules: bool = True,
        chain: Sequence[Step] = (),
        replicas: Replicas | None = None,
        tracked: frozenset[Tensor] = frozenset(),
        without_curvature: Callable[[Group], str] = lambda group: "",
    ) -> None:
        self._state = state
        self.without_curvature = without_curvature
        self._groups = list(groups)
        self._chain = tuple(chain)
        replicas = replicas or Replicas(process_group=None)
        self.items: list[tuple[Block, Group]] = []
        for group in self._groups:
            wanted = [
                (name, parameter)
                for name, parameter in zip(group["param_names"], group["params"], strict=True)
                if parameter.requires_grad or parameter in tracked
            ]
            blocks = partition(model, wanted, structure=structure, fallback=fallback, kind=kind, rules=rules)
            self.items += [(block, group) for block in blocks]
        self._group_of = {block: group for block, group in self.items}
        self.tracked = frozenset(parameter for block in self.blocks for parameter in block.parameters)
        self._frozen = [p for group in self._groups for p in group["params"] if p not in self.tracked]
        self.placement: dict[Block, Placement] = placements(self.blocks, replicas, chain)
        """Which part of each block this process holds."""
        self.divided = any(place.divided for place in self.placement.values())
        self._unanimity = Unanimity(replicas, own_shard(self.blocks[0].parameters[0]).device) if self.divided else None
        self._replicas = replicas
        self._shapes: dict[Block, State] = {}
        elementwise = all(step.SCOPE == "element" for step in self._chain)
        self.bundles = Bundles(self._group_of, self.placement, elementwise=elementwise)
        """Which blocks are computed together."""
        self._rooms = rooms.shared()  # kept as long as the table is

    @property
    def blocks(self) -> list[Block]:
        """All blocks."""
        return [block for block, _ in self.items]

    def group(self, block: Block) -> Group:
        """The param group of a block."""
        return self._group_of[block]

    def __iter__(self) -> Iterator[tuple[Block, Group]]:
        return iter(self.items)

    def outdated(self) -> bool:
        """Whether a parameter has been unfrozen since the table was made."""
        return any(parameter.requires_grad for parameter in self._frozen)

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
            mean = self.mean(block)
            if mean is None:  # another process owns the block
                device = own_shard(block.parameters[0]).device
                mean = torch.empty(block.layout.block_shape, dtype=block.curvature_dtype, device=device)
            state.update(self.start(block, mean))
            if not self.placement[block].held:
                self._keep(block)
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
            tuple(mean.shape), initial=start, dtype=block.curvature_dtype, device=mean.device
        )
        memory = {
            "observations": torch.zeros((), dtype=torch.int64),
            "curvature_weight": torch.tensor(float(start > 0.0), dtype=torch.float64),
        }
        for step in self._chain:
            step.prepare(memory, mean, group)
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

    def gradient(self, block: Block) -> Tensor | None:
        """The packed ``.grad``, as far as this process holds the block; a parameter without one counts as zero.

        Raises:
            UnsupportedObservationError: for a sparse gradient.
        """
        named = {}
        for name, parameter in zip(block.layout.names, block.parameters, strict=True):
            grad = parameter.grad
            if grad is not None and grad.is_sparse:
                raise UnsupportedObservationError(f"parameter {name!r} has a sparse gradient; use a dense one")
            named[name] = torch.zeros_like(parameter) if grad is None else grad.detach()
        return self._collect(block, named)

    def mean(self, block: Block) -> Tensor | None:
        """The packed parameters, as far as this process holds the block."""
        named = zip(block.layout.names, block.parameters, strict=True)
        return self._collect(block, {name: parameter.detach() for name, parameter in named})

    def _collect(self, block: Block, tensors: Mapping[str, Tensor]) -> Tensor | None:
        vector = self.placement[block].collect(tensors)
        return None if vector is None else vector.to(block.curvature_dtype)

    def write(self, means: Mapping[Block, Tensor | None]) -> None:
        """Put what this process holds of block vectors into the parameters that have a gradient."""
        pairs = []
        for block, mean in means.items():
            values = self.placement[block].spread(mean)
            named = zip(block.layout.names, block.parameters, strict=True)
            pairs += [(parameter, values[name]) for name, parameter in named if parameter.grad is not None]
        copy_each(pairs)

    # ------------------------------------------------------------------ blocks that processes divide

    def observed_with(self, block: Block) -> State:
        """The curvature as :meth:`Structure.observe` may read it: without numbers where another process owns it."""
        curvature: State = self.state(block)["curvature"]
        if self.placement[block].held:
            return curvature
        if block not in self._shapes:
            shape, dtype = block.layout.block_shape, block.curvature_dtype
            self._shapes[block] = block.structure.init(shape, initial=0.0, dtype=dtype, device="meta")
        return self._shapes[block] | curvature

    @contextmanager
    def together(self) -> Iterator[None]:
        """An error inside is raised by all processes that divide blocks; nothing else is communicated inside."""
        if self._unanimity is None:
            yield
            return
        with self._unanimity.section():
            yield

    @property
    def total(self) -> Callable[[Tensor], Tensor] | None:
        """Sum of the numbers of the processes that divide blocks, inside :meth:`together`; ``None`` if none do."""
        return None if self._unanimity is None else self._unanimity.total

    def gathered(self, block: Block) -> dict[str, Any]:
        """The block's whole state, on every process."""
        state, place = self.state(block), self.placement[block]
        return {kind: place.gather(state[kind]) for kind in ("curvature", "memory")} if place.divided else state

    def gathered_states(self) -> defaultdict[Any, Any]:
        """The whole optimizer state, on every process; block by block."""
        out: defaultdict[Any, Any] = defaultdict(dict, self._state)
        out.update({block.parameters[0]: self.gathered(block) for block in self.blocks if self._known_state(block)})
        return out

    def divide_states(self) -> None:
        """Keep this process's part of states that are whole, and start those that are missing."""
        for block, place in self.placement.items():
            if place.divided and self._known_state(block):
                self._keep(block)
        for block in self.blocks if self.divided else ():
            self.state(block)  # here, where all processes are, for it communicates

    def _keep(self, block: Block) -> None:
        """Let go of what this process does not hold of a whole state."""
        state, place = self._state[block.parameters[0]], self.placement[block]
        kept = {"curvature": block.structure.READ_BY_OBSERVE, "memory": COUNTERS}
        state.update({kind: place.keep(state[kind], names) for kind, names in kept.items()})

    def _known_state(self, block: Block) -> bool:
        return "curvature" in self._state.get(block.parameters[0], {})

    def moving(self, gradients: Mapping[Block, Tensor]) -> Callable[[Block], bool]:
        """Whether a block's gradient has an element that is not zero, on any process.

        Args:
            gradients: of the blocks that this process holds, if they are known as block vectors.
        """
        if not self.divided:
            flags: dict[Block, bool] = {}  # found once they are asked for; all at once where a device is waited for

            def moves(block: Block) -> bool:
                if block not in gradients:
                    return self.any_moves(block.parameters)
                if block not in flags:
                    alone = block.parameters[0].device.type == "cpu"
                    asked = {block: gradients[block]} if alone else gradients
                    found = numbers(nonzero_each(list(asked.values())))
                    flags.update({own: number != 0.0 for own, number in zip(asked, found, strict=True)})
                return flags[block]

            return moves
        mine = [block in gradients and bool(gradients[block].any()) for block in self.blocks]
        found = torch.tensor(mine, dtype=torch.int64, device=own_shard(self.blocks[0].parameters[0]).device)
        self._replicas.all_reduce(found)
        moving = dict(zip(self.blocks, found.tolist(), strict=True))
        return lambda block: bool(moving[block])

    def any_moves(self, parameters: Sequence[Tensor]) -> bool:
        """Whether a gradient has an element that is not zero, on any process that holds a shard of it."""
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        found = any(bool(own_shard(grad).any()) for grad in grads)
        if not any(is_sharded(grad) for grad in grads):
            return found
        flag = torch.tensor(int(found), device=own_shard(grads[0]).device)
        self._replicas.all_reduce(flag)
        return bool(flag)

    def publish(self, olds: Mapping[Block, State]) -> None:
        """Tell all processes what they keep of blocks that others own.

        Args:
            olds: the curvature before the step of the blocks that this process holds.
        """
        owned = [block for block in self.blocks if self.placement[block].owner is not None]
        if not owned:
            return
        rows = []
        for block in owned:
            state = self.state(block)
            new, old = state["curvature"], olds.get(block, {})
            changed = any(new[key] is not old.get(key, new[key]) for key in block.structure.READ_BY_OBSERVE)
            held = self.placement[block].held
            rows.append([float(state["memory"][key]) if held else 0.0 for key in COUNTERS] + [float(held and changed)])
        table = torch.tensor(rows, dtype=torch.float64, device=own_shard(owned[0].parameters[0]).device)
        self._replicas.all_reduce(table)
        for block, (observations, weight, changed) in zip(owned, table.tolist(), strict=True):
            state = self.state(block)
            if not self.placement[block].held:
                numbers = torch.tensor(int(observations)), torch.tensor(weight, dtype=torch.float64)
                state["memory"] = dict(zip(COUNTERS, numbers, strict=True))
            if changed:
                read = {key: state["curvature"][key] for key in block.structure.READ_BY_OBSERVE}
                state["curvature"] = state["curvature"] | self.placement[block].gather(read)

    # ------------------------------------------------------------------ checkpoints

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


def copy_each(pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Copy the second into the first of every pair, in as few calls as there are dtypes and devices; nothing where both
    are the same memory."""
    alike: dict[Any, list[tuple[Tensor, Tensor]]] = {}
    for target, source in pairs:
        if is_sharded(target):
            target.copy_(source)
        elif not source.is_set_to(target):
            alike.setdefault((target.device, target.dtype, source.dtype), []).append((target, source))
    for found in alike.values():
        torch._foreach_copy_([target for target, _ in found], [source for _, source in found])


def new_table(optimizer: NaturalGradient, *, tracked: frozenset[Tensor] = frozenset()) -> BlockTable:
    """The blocks of an optimizer's groups; nothing of the optimizer is changed.

    Args:
        optimizer: whose groups are cut into blocks.
        tracked: parameters that were tracked before and stay so although they are frozen now.
    """
    return BlockTable(
        optimizer._model,
        optimizer.param_groups,
        optimizer.state,
        structure=optimizer.selection,
        fallback=optimizer.fallback,
        kind=optimizer.partition,
        rules=any(statistic.NEEDS_PAIRS for statistic in optimizer.statistics),
        chain=optimizer.chain,
        replicas=optimizer.replicas,
        tracked=tracked,
        without_curvature=partial(without_curvature, optimizer),
    )


def without_curvature(optimizer: NaturalGradient, group: Mapping[str, Any]) -> str:
    """Why a group has no curvature, ``""`` if it has: what the steps of the chain say."""
    for step in optimizer.chain:
        if reason := step.without_curvature(group):
            return reason
    return ""


def new_collector(optimizer: NaturalGradient, table: BlockTable) -> Collector:
    """The collector of an optimizer's blocks."""
    return Collector(
        table.blocks,
        optimizer.statistics,
        state_of=table.observed_with,
        gradient_of=table.gradient,
        placement_of=table.placement.__getitem__,
        bundles=table.bundles,
        loss_reduction=optimizer.loss_reduction,
        loss_scale=lambda: 1.0 if optimizer.grad_scaler is None else float(optimizer.grad_scaler.get_scale()),
        replicas=optimizer.replicas,
    )
