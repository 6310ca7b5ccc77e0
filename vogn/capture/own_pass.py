"""A backward pass of our own: from chosen gradients at the network's outputs to the layers, `.grad` untouched."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vogn.announcement import LikelihoodCall
from vogn.capture.gather import check_examples, without_padding
from vogn.capture.partition import Member
from vogn.capture.taps import Call, Taps, join_calls, muted, passed_twice
from vogn.layers.bare import parameter_rows
from vogn.linalg.rows import IndexedRows, Rows


def member_rows(
    call: LikelihoodCall, columns: Tensor, wanted: Collection[Member], taps: Taps, members: Sequence[Member]
) -> tuple[dict[Member, list[Rows | IndexedRows]], set[int]]:
    """Rows of layers and bare parameters, for gradient columns at the outputs of a likelihood call.

    Args:
        call: its outputs are attached to the graph, which is kept.
        columns: ``(K, *outputs.shape)``.
        wanted: the members whose rows are asked for.
        taps: where the forward calls were recorded.
        members: all members, in the order in which those without a recorded call are sought in the graph.

    Returns:
        Rows by member, and the layer calls that the pass has gone through: their ``id``, or ``-1 - key`` of a layer in
        a compiled graph.

    Raises:
        UnsupportedObservationError: if an earlier backward of the context has gone through the same forward pass.
    """
    calls = [tap for tap in taps.calls if tap.member in wanted]
    bare = [member for member in wanted if member.rule is None and member.parameters[0].requires_grad]
    unseen = {member for member in wanted if member.rule is not None} - {tap.member for tap in calls}
    with muted():
        with taps.hearing() as heard:
            asked = [member for member in members if member in unseen]
            grads, used = layer_gradients(call.outputs, columns, calls, asked)
        bare_rows = parameter_gradients(call.outputs, columns, bare)
    reached = [replace(tap, grad=grad) for tap, grad in zip(calls, grads, strict=True) if grad is not None]
    known = {tap.member for tap in heard}
    if gone := [member for member in used if member in taps.released and member not in known]:
        raise passed_twice(gone[0])
    compiled = [tap for tap in stack_columns(heard, len(columns)) if tap.member in wanted]
    by_member: dict[Member, list[Call]] = {}
    for tap in (*reached, *compiled):
        by_member.setdefault(tap.member, []).append(tap)
    rows_of: dict[Member, list[Rows | IndexedRows]] = {
        member: [without_padding(rows, call.mask) for rows in join_calls(found)] for member, found in by_member.items()
    }
    check_examples({member: max(r.count for r in rows) for member, rows in rows_of.items()}, call.outputs.shape[0])
    rows_of |= {member: [rows] for member, rows in bare_rows.items()}
    touched = {id(tap) for tap, grad in zip(calls, grads, strict=True) if grad is not None}
    return rows_of, touched | {-1 - tap.key for tap in compiled if tap.key is not None}


def layer_gradients(
    outputs: Tensor, columns: Tensor, calls: Sequence[Call], unseen: Sequence[Member] = ()
) -> tuple[list[Tensor | None], list[Member]]:
    """Propagate gradient columns from the outputs to tapped layers.

    Args:
        outputs: network outputs ``(N, ...)``, attached to the graph, which is kept.
        columns: ``(K, *outputs.shape)``.
        calls: the tapped forward calls.
        unseen: layers of which no call was seen: unused, frozen, or in a compiled graph, whose taps report by
            themselves when the gradient of any parameter in the graph is asked for.

    Returns:
        One ``(K, *layer output)`` gradient per call, ``None`` where the outputs do not depend on it; and those of
        ``unseen`` on whose parameters they do depend.
    """
    edges = [call.edge for call in calls if call.edge is not None]
    assert len(edges) == len(calls)
    tracked = {m: p for m in unseen if (p := next((p for p in m.parameters if p.requires_grad), None)) is not None}
    targets: list[Any] = [*edges, *tracked.values()]
    per_column = [
        torch.autograd.grad(outputs, targets, column.to(outputs.dtype), retain_graph=True, allow_unused=True)
        for column in (columns if targets else ())
    ]
    found = list(zip(*per_column, strict=True))
    reached = [None if any(grad is None for grad in grads) else _columns(grads) for grads in found[: len(edges)]]
    used = [member for member, grads in zip(tracked, found[len(edges) :], strict=False) if grads[0] is not None]
    return reached, used


def _columns(grads: Sequence[Tensor]) -> Tensor:
    """As one tensor with the columns first; a single one is not copied."""
    return grads[0].unsqueeze(0) if len(grads) == 1 else torch.stack(list(grads))


def parameter_gradients(outputs: Tensor, columns: Tensor, bare: Sequence[Member]) -> dict[Member, Rows]:
    """Rows of parameters without a layer rule, one gradient per example; arguments as :func:`layer_gradients`."""
    if not bare:
        return {}
    parameters = [member.parameters[0] for member in bare]
    gradients = [per_example_gradients(outputs, column, parameters) for column in columns]
    return {
        member: parameter_rows(torch.stack(grads))
        for member, grads in zip(bare, zip(*gradients, strict=True), strict=True)
    }


def stack_columns(heard: Sequence[Call], columns: int) -> list[Call]:
    """Calls in compiled graphs, one for every column and place in the graph, as one call per place."""
    places = len(heard) // columns
    assert places * columns == len(heard)
    return [
        replace(heard[place], grad=torch.cat([call.grad for call in heard[place::places] if call.grad is not None]))
        for place in range(places)
    ]


def per_example_gradients(outputs: Tensor, column: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of ``<outputs[n], column[n]>`` for every example ``n``: a list of ``(N, *shape)``.

    One vectorised backward; graphs that cannot be vectorised are walked example by example.
    """
    n = outputs.shape[0]
    projected = (outputs * column).reshape(n, -1).sum(1)

    def grad(direction: Tensor, batched: bool) -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(
            projected, parameters, direction, retain_graph=True, allow_unused=True, is_grads_batched=batched
        )

    eye = torch.eye(n, dtype=projected.dtype, device=projected.device)
    try:
        grads = grad(eye, True)
    except RuntimeError:
        single = [grad(direction, False) for direction in eye]
        grads = tuple(
            None if column_grads[0] is None else torch.stack([g for g in column_grads if g is not None])
            for column_grads in zip(*single, strict=True)
        )
    return [
        parameter.new_zeros(n, *parameter.shape) if gradient is None else gradient
        for parameter, gradient in zip(parameters, grads, strict=True)
    ]
