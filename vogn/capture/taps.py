"""Taps: what the layers' forward passes leave behind while capture is active.

A tap is a forward hook that registers a *tensor* hook on the layer's output, so in-place activations keep working.
Hooks are attached when capture begins and removed when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from vogn.capture.partition import Member
from vogn.errors import UnsupportedObservationError
from vogn.linalg.rows import IndexedRows, Rows

_mute_depth = 0


@contextmanager
def muted() -> Iterator[None]:
    """A pass of our own is running: no optimizer takes it for the user's backward."""
    global _mute_depth
    _mute_depth += 1
    try:
        yield
    finally:
        _mute_depth -= 1


def is_muted() -> bool:
    """Whether a pass of our own is running."""
    return _mute_depth > 0


@dataclass(eq=False)
class Call:
    """One forward call of a tapped layer.

    Args:
        member: whose layer was called.
        saved: what the layer's rule keeps from forward.
        versions: version counters of ``saved``, to notice later in-place changes.
        edge: the place in the graph where the output's gradient arrives.
        grad: gradient columns ``(K, *output.shape)`` once a backward has passed.
    """

    member: Member
    saved: tuple[Tensor, ...]
    versions: tuple[int, ...]
    edge: GradientEdge | None
    grad: Tensor | None = None
    consumed: bool = False

    def forget(self) -> None:
        """Let go of the graph: a hook on the graph holds this call, so keeping the edge would keep both alive."""
        self.saved, self.edge, self.grad, self.consumed = (), None, None, True

    def rows(self) -> Rows | IndexedRows:
        """Rows of this call."""
        assert self.grad is not None and self.member.rule is not None and self.member.module is not None
        if tuple(tensor._version for tensor in self.saved) != self.versions:
            raise UnsupportedObservationError(
                f"the input of layer {self.member.layout.names[0]!r} was changed in place after the layer had used "
                "it; make the operation that follows it out of place"
            )
        return self.member.rule.rows(self.member.module, self.member.attributes, self.saved, self.grad)


@dataclass(eq=False)
class Taps:
    """The hooks of one optimizer.

    Args:
        members: members with a layer rule.
        on_gradient: called with a call whenever the user's backward reaches its output; ``None`` leaves the user's
            backward alone.
    """

    members: Sequence[Member]
    on_gradient: Callable[[Call], None] | None
    calls: list[Call] = field(default_factory=list)
    _handles: list[Any] = field(default_factory=list)
    _open: list[Call] = field(default_factory=list)

    def attach(self) -> None:
        """Start to record forward calls."""
        for member in self.members:
            assert member.module is not None
            self._handles.append(member.module.register_forward_hook(self._hook(member), with_kwargs=True))

    def detach(self) -> None:
        """Stop recording and let go of every graph that was recorded."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self.calls.clear()
        for call in self._open:
            call.forget()
        self._open.clear()

    def release(self, used: set[int]) -> None:
        """Let go of calls (by ``id``) whose backward is over, before the context ends."""
        for call in [call for call in self.calls if id(call) in used]:
            self.calls.remove(call)
            call.forget()

    def _hook(self, member: Member) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            # a copy of the model carries this hook along, but is another model
            if module is not member.module or not (torch.is_grad_enabled() and output.requires_grad):
                return
            inputs = args or tuple(kwargs.values())
            with torch.no_grad():
                assert member.rule is not None
                saved = member.rule.saved(module, inputs, output)
            call = Call(member, saved, tuple(tensor._version for tensor in saved), get_gradient_edge(output))
            self.calls.append(call)
            self._open.append(call)
            if self.on_gradient is not None:
                output.register_hook(lambda grad: self._receive(call, grad))

        return hook

    def _receive(self, call: Call, grad: Tensor) -> None:
        if is_muted() or not self._handles or self.on_gradient is None:
            return
        if call.consumed:
            raise UnsupportedObservationError(
                f"two backward passes went through one forward pass of layer {call.member.layout.names[0]!r}: their "
                "gradients belong to the same examples and cannot be told apart. Add the losses, call backward "
                "once, and compute other gradients (penalties, adversarial examples) outside the context"
            )
        call.grad = grad.detach().unsqueeze(0)
        self.on_gradient(call)


def join_calls(calls: Sequence[Call]) -> list[Rows | IndexedRows]:
    """Rows of one layer over one backward pass.

    Several calls on the same examples add up: they are further positions of the same rows. Calls on different numbers
    of examples stay apart.
    """
    rows = [call.rows() for call in calls]
    if len(rows) == 1 or len({(type(row), row.count, row.columns) for row in rows}) > 1:
        return rows
    mask = None
    if any(row.mask is not None for row in rows):
        positions = [
            row.g.new_ones(row.g.shape[-3:-1], dtype=torch.bool) if row.mask is None else row.mask for row in rows
        ]
        mask = torch.cat(positions, -1)
    g = torch.cat([row.g for row in rows], -2)
    indexed = [row for row in rows if isinstance(row, IndexedRows)]
    if indexed:
        return [IndexedRows(torch.cat([row.index for row in indexed], -1), g, indexed[0].size, mask=mask)]
    return [Rows(torch.cat([row.a for row in rows], -2), g, mask=mask)]
