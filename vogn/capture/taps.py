"""Taps: what the layers' forward passes leave behind while capture is active.

A tap is a forward hook that registers a *tensor* hook on the layer's output, so in-place activations keep working.
Modules that use their parameters without calling sub-modules get an explicit forward instead, which reports every use
(:mod:`vogn.capture.forwards`). Both are attached when capture begins and removed when it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from vogn.capture.compiled import keeping_buffers, new_key, tap
from vogn.capture.forwards import bind, unbind
from vogn.capture.lookups import Lookups
from vogn.capture.partition import Member
from vogn.errors import UnsupportedObservationError
from vogn.layers.bare import parameter_rows
from vogn.layers.base import positional_arguments
from vogn.layers.sites import examples_first
from vogn.linalg.rows import IndexedRows, Rows, Total

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
        use: the same, or the member of the layer that was called where several layers share a parameter.
        edge: the place in the graph where the output's gradient arrives.
        shape: shape of the output; a gradient may come in another one, with the same elements in the same order.
        saved: what the layer's rule keeps from forward.
        versions: version counters of ``saved``, to notice later in-place changes.
        grad: gradient columns once a backward has passed.
        key: of the layer in a compiled graph; ``None`` for a call that Python has seen.
        output: the layer's output, for the few structures that read it.
        total: where the sum of the rows shall be left, if somebody forms them.
    """

    member: Member
    use: Member
    edge: GradientEdge | None
    shape: torch.Size
    saved: tuple[Tensor, ...] = ()
    versions: tuple[int, ...] = ()
    grad: Tensor | None = None
    consumed: bool = False
    key: int | None = None
    output: Tensor | None = None
    total: Total | None = None

    def keep(self, saved: tuple[Tensor, ...]) -> None:
        """Take what the rule will need."""
        self.saved, self.versions = saved, tuple(tensor._version for tensor in saved)

    def forget(self) -> None:
        """Let go of the graph: a hook on the graph holds this call, so keeping the edge would keep both alive."""
        self.saved, self.edge, self.grad, self.output, self.total, self.consumed = (), None, None, None, None, True

    def rows(self) -> Rows | IndexedRows:
        """Rows of this call."""
        use = self.use
        assert self.grad is not None and use.rule is not None and use.module is not None
        if tuple(tensor._version for tensor in self.saved) != self.versions:
            raise UnsupportedObservationError(
                f"the input of layer {self.member.layout.names[0]!r} was changed in place after the layer had used "
                "it; make the operation that follows it out of place"
            )
        grad = examples_first(self.grad.reshape(len(self.grad), *self.shape), use.axes, 1)
        rows = use.rule.rows(use.module, use.attributes, self.saved, grad)
        if self.total is not None:
            rows = rows.changed(total=self.total)
        if self.output is None:
            return rows
        output = examples_first(self.output.unsqueeze(0), use.axes, 1)  # in the shape and order of a gradient
        like_rows = use.rule.rows(use.module, use.attributes, self.saved, output)
        return rows.changed(outputs=like_rows.g.select(-4, 0))


class _Hook:
    """The forward hook of one member. A copy of the model carries an inert one, which removes itself."""

    def __init__(
        self, owner: nn.Module | None = None, record: Callable[[tuple[Any, ...], Tensor], Tensor] | None = None
    ) -> None:
        self._owner = owner
        self._record = record

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if self._record is None:
            for key in [key for key, hook in module._forward_hooks.items() if hook is self]:
                del module._forward_hooks[key]
                module._forward_hooks_with_kwargs.pop(key, None)
        elif module is self._owner and torch.is_grad_enabled() and output.requires_grad:
            return self._record(positional_arguments(module, args, kwargs), output)
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Hook, ())


@dataclass(eq=False)
class Taps:
    """The hooks of one optimizer.

    Args:
        members: members with a layer rule.
        on_gradient: called with a call whenever the user's backward reaches its output; ``None`` leaves the user's
            backward alone.
        read_outputs: the members whose outputs are kept too.
    """

    members: Sequence[Member]
    on_gradient: Callable[[Call], None] | None
    read_outputs: Collection[Member] = ()
    calls: list[Call] = field(default_factory=list)
    _handles: list[Any] = field(default_factory=list)
    _sites: dict[tuple[nn.Module, str], list[tuple[Member, Member]]] = field(default_factory=dict)
    _open: list[Call] = field(default_factory=list)
    released: set[Member] = field(default_factory=set)
    """Members of which a call has been let go of in this context: the backward through it is over."""
    _attached: bool = False
    _lookups: Lookups = field(default_factory=Lookups)
    _keys: dict[tuple[Member, Member], int] = field(default_factory=dict)
    _heard: list[Call] | None = None
    _buffers: ExitStack = field(default_factory=ExitStack)

    def attach(self) -> None:
        """Start to record forward calls."""
        for member in self.members:
            for use in member.uses or (member,):
                assert use.module is not None
                if (member, use) not in self._keys:  # the same for every context: the compiled graph holds it
                    self._keys[member, use] = new_key(self)
                if use.site:
                    self._sites.setdefault((use.module, use.site), []).append((member, use))
                else:
                    hook = _Hook(use.module, self._recorder(member, use))
                    self._handles.append(use.module.register_forward_hook(hook, with_kwargs=True))
        for module in {module: None for module, _ in self._sites}:
            name = next(uses[0][1].layout.names[0] for (owner, _), uses in self._sites.items() if owner is module)
            bind(module, self._on_site, name)
        if self.on_gradient is None:
            self._buffers.enter_context(keeping_buffers())
        self._attached = True

    def detach(self) -> None:
        """Stop recording and let go of every graph that was recorded."""
        self._attached = False
        self._lookups.forget()
        self._buffers.close()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for module, _ in self._sites:
            unbind(module, self._on_site)
        self._sites.clear()
        self.calls.clear()
        for call in self._open:
            call.forget()
        self._open.clear()
        self.released.clear()

    def passed(self, used: set[int]) -> Member | None:
        """The member of a call among these (by ``id``) that has been let go of before, if there is one."""
        return next((call.member for call in self._open if call.consumed and id(call) in used), None)

    def release(self, used: set[int]) -> None:
        """Let go of calls (by ``id``) whose backward is over, before the context ends."""
        for call in [call for call in self.calls if id(call) in used]:
            self.calls.remove(call)
            self.released.add(call.member)
            call.forget()

    def _recorder(self, member: Member, use: Member) -> Callable[[tuple[Any, ...], Tensor], Tensor]:
        """What the forward hook of an ordinary layer does."""
        rule, module = use.rule, use.module
        assert rule is not None and module is not None
        key = self._keys[member, use]

        def record(inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            with torch.no_grad():
                if use.axes != "examples":
                    inputs = (examples_first(inputs[0], use.axes), *inputs[1:])
                saved = rule.saved(module, inputs, output)
            if rule.LOOKS_UP:
                saved, output = self._lookups.spread(use.layout.names[0], saved, output)
            if torch.compiler.is_compiling():
                kept = list(saved)
                output.register_hook(lambda grad: tap(grad, kept, key))
            else:
                self._record(member, use, output).keep(saved)
            return output

        return record

    def _on_site(self, module: nn.Module, site: str, output: Tensor) -> Callable[[tuple[Tensor, ...]], None]:
        uses = self._sites.get((module, site), ())
        if torch.compiler.is_compiling():
            keys = [self._keys[member, use] for member, use in uses]

            def register(saved: tuple[Tensor, ...]) -> None:
                for key in keys:
                    output.register_hook(lambda grad, key=key: tap(grad, list(saved), key))

            return register
        calls = [self._record(member, use, output) for member, use in uses]

        def keep(saved: tuple[Tensor, ...]) -> None:
            for call in calls:
                call.keep(saved)

        return keep

    def _record(self, member: Member, use: Member, output: Tensor) -> Call:
        place = _place(output)
        call = Call(member, use, get_gradient_edge(place), output.shape)
        if member in self.read_outputs:
            call.output = output.detach().clone()  # an activation may work in place
        self.calls.append(call)
        self._open.append(call)
        if self.on_gradient is not None:
            place.register_hook(lambda grad: self._receive(call, grad))
        return call

    def on_compiled(self, key: int, saved: tuple[Tensor, ...], grad: Tensor) -> None:
        """See :class:`vogn.capture.compiled.Listener`."""
        mine = self._heard if is_muted() else self._open
        if mine is None or not self._attached or (self.on_gradient is None and not is_muted()):
            return
        member, use = next(pair for pair, number in self._keys.items() if number == key)
        # copies: the graph reuses its buffers as soon as the operator returns
        call = Call(member, use, None, grad.shape, key=key, grad=grad.detach().clone().unsqueeze(0))
        call.keep(tuple(tensor.clone() for tensor in saved))
        mine.append(call)
        if not is_muted():
            assert self.on_gradient is not None
            self.on_gradient(call)

    @contextmanager
    def hearing(self) -> Iterator[list[Call]]:
        """The calls that a pass of our own reaches in compiled graphs."""
        self._heard = []
        try:
            yield self._heard
        finally:
            self._heard = None

    def _receive(self, call: Call, grad: Tensor) -> None:
        if is_muted() or not self._attached or self.on_gradient is None:
            return
        if call.consumed:
            raise passed_twice(call.member)
        call.grad = grad.detach().unsqueeze(0)
        self.on_gradient(call)


def passed_twice(member: Member) -> UnsupportedObservationError:
    """What is raised when two backward passes go through one forward pass of a layer."""
    return UnsupportedObservationError(
        f"two backward passes went through one forward pass of layer {member.layout.names[0]!r}: their gradients "
        "belong to the same examples and cannot be told apart. Add the losses, call backward once, and compute other "
        "gradients (penalties, adversarial examples) outside the context"
    )


def _place(output: Tensor) -> Tensor:
    """The tensor where the gradient of an output arrives, whatever is done to the output in place later.

    An operation in place on a view goes into the history of its base and leaves out the view: linear layers return
    their matrix product as such a view.
    """
    base = output._base
    if base is None or base.grad_fn is None or base.numel() != output.numel():
        return output
    return base if base.is_contiguous() and output.is_contiguous() else output


def join_calls(calls: Sequence[Call]) -> list[Rows | IndexedRows]:
    """Rows of one layer over one backward pass.

    Several calls on the same examples add up: they are further positions of the same rows. Calls on different numbers
    of examples stay apart.
    """
    rows = [call.rows() for call in calls]
    member = calls[0].member
    if any(use.layout != member.layout for use in member.uses):
        rows = [_elementwise(call, row) for call, row in zip(calls, rows, strict=True)]
    elif member.uses and len({type(row) for row in rows}) > 1:
        rows = [Rows(row.a, row.g, row.mask, row.outputs) for row in rows]
    if len(rows) == 1 or len({(type(row), row.count, row.columns) for row in rows}) > 1:
        return rows
    known = [row.outputs for row in rows if row.outputs is not None]
    outputs = torch.cat(known, -2) if len(known) == len(rows) else None
    mask = None
    if any(row.mask is not None for row in rows):
        shapes = [row.g.shape[:-4] + row.g.shape[-3:-1] for row in rows]
        masks = [row.g.new_ones((), dtype=torch.bool) if row.mask is None else row.mask for row in rows]
        mask = torch.cat([part.expand(shape) for part, shape in zip(masks, shapes, strict=True)], -1)
    g = torch.cat([row.g for row in rows], -2)
    indexed = [row for row in rows if isinstance(row, IndexedRows)]
    if indexed:
        return [IndexedRows(torch.cat([row.index for row in indexed], -1), g, indexed[0].size, mask, outputs)]
    return [Rows(torch.cat([row.a for row in rows], -2), g, mask, outputs)]


def _elementwise(call: Call, rows: Rows | IndexedRows) -> Rows:
    """Rows of a shared parameter as explicit gradients: its layers see it in different shapes."""
    (gradients,) = call.use.layout.unpack(rows.dense()).values()
    return parameter_rows(gradients)
