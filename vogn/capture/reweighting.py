"""Backward passes whose gradients are weighted sums over the examples, with weights of their own in every block.

While a context is open, ``.grad`` of a block receives ``sum_n c_n u_n`` instead of ``sum_n u_n``. All that follows
works on ``.grad``: accumulation, averaging over processes, loss scaling and clipping need nothing of their own. Linear
layers, convolutions and norms run a forward whose backward weighs the output gradient on its way to the parameters
(:mod:`vogn.layers.weighted`); of other layers the taps keep the rows, and a hook on the parameter adds
``sum_n (c_n - 1) u_n`` before the gradient is accumulated. Modules with an explicit forward may hear of a site after
its parameters have their gradient: theirs is corrected when the backward pass has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vogn.capture.own_backward import OwnBackwards
from vogn.capture.partition import Block, Member
from vogn.capture.places import Places
from vogn.capture.replication import sharded_block
from vogn.capture.taps import Call, Taps, is_muted, join_calls
from vogn.distributed import Replicas
from vogn.errors import UnsupportedObservationError
from vogn.layers.weighted import Weights


@dataclass(frozen=True)
class ExampleWeights:
    """The weights of a block's examples.

    Args:
        table: ``c`` by place in the data set, ``(examples,)``.
        rest: the weight of examples beyond the table, and of parameters without rows.
    """

    table: Tensor
    rest: float

    def of(self, places: Tensor, limit: int) -> Tensor:
        """``c (N,)`` of the examples at these places (int64), all of which are below ``limit``."""
        size = self.table.shape[0]
        if limit <= size:
            return self.table.index_select(0, places)
        if not size:
            return self.table.new_full(places.shape, self.rest)
        return torch.where(places < size, self.table[places.clamp_max(size - 1)], self.rest)


class Reweighting:
    """Weighs the examples of the user's backward passes.

    Args:
        blocks: the optimizer's blocks.
        notice: called when a backward pass reaches a layer, so that its end can be noticed.
        replicas: the processes that train copies of the model.
    """

    def __init__(self, blocks: Sequence[Block], notice: Callable[[], None], replicas: Replicas) -> None:
        self._blocks = list(blocks)
        self._notice = notice
        self._replicas = replicas
        self._late: dict[Member, ExampleWeights] = {}
        self._own = OwnBackwards()
        self._places = Places()
        self._taps: Taps | None = None
        self._calls: dict[Member, list[Call]] = {}
        self._sums: dict[Member, dict[str, Tensor]] = {}
        self._hooks: list[Any] = []
        self._noticed = False

    def attach(self, weights: Mapping[str, ExampleWeights], places: Places) -> None:
        """Begin to weigh.

        Args:
            weights: block name to its weights; other blocks are left alone.
            places: of the context's examples.

        Raises:
            UnsupportedObservationError: naming a sharded block without a weighted forward, or one of a module with an
                explicit forward where several processes average their gradients during backward.
        """
        tapped = []
        self._places = places
        for block in self._blocks:
            if block.name not in weights:
                continue
            c = weights[block.name]
            for member in block.members:
                if self._own.bind(member, self._weights_of(c, places)):
                    continue
                if sharded_block([block]):
                    raise UnsupportedObservationError(
                        f"block {block.name!r} is sharded (fully_shard): weights of examples reach sharded parameters "
                        "in linear layers, convolutions and norms only. Use share='mean' or freeze_after=None, keep "
                        "the parameter whole with fully_shard(..., ignored_params=...), or freeze it"
                    )
                if member.rule is None:
                    self._hook(member, lambda name, grad, rest=c.rest: grad * rest)  # type: ignore[misc]
                    continue
                tapped.append(member)
                if member.site:
                    self._check_not_averaged(block, member)
                    self._late[member] = c
                else:
                    self._hook(member, self._corrected(member, c))
        if tapped:
            self._taps = Taps(tapped, self._receive)
            self._taps.attach()

    def detach(self) -> None:
        """The context is over."""
        self._own.unbind()
        for hook in self._hooks:
            hook.remove()
        if self._taps is not None:
            self._taps.detach()
        self._hooks.clear()
        self._taps = None
        self._late.clear()
        self._forget()

    def finish_pass(self) -> None:
        """A backward pass has ended."""
        with torch.no_grad():
            for member, c in self._late.items():
                found = self._sum(member, c)
                for name, parameter in zip(member.layout.names, member.parameters, strict=True):
                    if name in found and parameter.grad is not None:
                        parameter.grad.add_(found[name])
        self._forget()

    def _forget(self) -> None:
        self._noticed = False
        self._calls.clear()
        self._sums.clear()

    def _hook(self, member: Member, change: Callable[[str, Tensor], Tensor]) -> None:
        for name, parameter in zip(member.layout.names, member.parameters, strict=True):
            if parameter.requires_grad:
                self._hooks.append(
                    parameter.register_hook(
                        lambda grad, name=name: None if is_muted() else change(name, grad)
                    )
                )

    def _weights_of(self, c: ExampleWeights, places: Places) -> Weights:
        def weights(grad: Tensor) -> Tensor | None:
            if is_muted():
                return None
            self._reached()
            return c.of(places.take(grad.shape[0], grad.device), places.limit).to(grad)

        return weights

    def _reached(self) -> None:
        """A backward pass has come to a layer."""
        if not self._noticed:
            self._noticed = True
            self._notice()

    def _corrected(self, member: Member, c: ExampleWeights) -> Callable[[str, Tensor], Tensor]:
        """A parameter of a tapped layer: all calls of the layer in this pass are behind its gradient."""

        def change(name: str, grad: Tensor) -> Tensor:
            found = self._sum(member, c).get(name)
            return grad * c.rest if found is None else grad + found.to(grad)

        return change

    def _sum(self, member: Member, c: ExampleWeights) -> dict[str, Tensor]:
        """``sum_n (c_n - 1) u_n`` of this pass, by parameter; nothing where calls on different numbers of examples do
        not tell which these are."""
        if member not in self._sums:
            parts = join_calls(self._calls.pop(member)) if member in self._calls else []
            self._sums[member] = {}
            if len(parts) == 1:
                (rows,) = parts
                weights = c.of(self._places.take(rows.count, rows.g.device), self._places.limit).to(rows.g)
                total = rows.rmatvec((weights - 1.0).expand(rows.columns, -1))
                self._sums[member] = member.layout.unpack(total)
        return self._sums[member]

    def _check_not_averaged(self, block: Block, member: Member) -> None:
        if self._replicas.size > 1:
            raise UnsupportedObservationError(
                f"block {block.name!r}: weights of examples cannot enter the gradients of "
                f"{type(member.module).__name__} before they are averaged over the processes: use share='mean' or "
                "freeze_after=None, or freeze its parameters"
            )

    def _receive(self, call: Call) -> None:
        self._reached()
        assert self._taps is not None
        if call in self._taps.calls:
            self._taps.calls.remove(call)
        self._calls.setdefault(call.member, []).append(call)
