"""A backward pass of our own: from chosen gradients at the network's outputs to the layers, `.grad` untouched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vogn.capture.partition import Member
from vogn.capture.taps import Call
from vogn.layers.bare import parameter_rows
from vogn.linalg.rows import Rows


def own_pass(
    outputs: Tensor, columns: Tensor, calls: Sequence[Call], bare: Sequence[Member], unseen: Sequence[Member] = ()
) -> tuple[list[Tensor | None], dict[Member, Rows]]:
    """Propagate gradient columns from the outputs to tapped layers and bare parameters.

    Args:
        outputs: network outputs ``(N, ...)``, attached to the graph, which is kept.
        columns: ``(K, *outputs.shape)``.
        calls: the tapped forward calls.
        bare: parameters without a layer rule; they get one gradient per example.
        unseen: layers of which no call was seen: unused, or in a compiled graph, whose taps report by themselves.

    Returns:
        One ``(K, *layer output)`` gradient per call (``None`` where the outputs do not depend on it), and the rows of
        the bare parameters.
    """
    per_call: list[list[Tensor | None]] = []
    edges = [call.edge for call in calls if call.edge is not None]
    assert len(edges) == len(calls)
    targets: list[Any] = [*edges, *(member.parameters[0] for member in unseen)]
    for column in columns if targets else ():
        grads = torch.autograd.grad(outputs, targets, column.to(outputs.dtype), retain_graph=True, allow_unused=True)
        per_call.append(list(grads[: len(edges)]))
    stacked = [
        None if any(grad is None for grad in grads) else torch.stack([g for g in grads if g is not None])
        for grads in zip(*per_call, strict=True)
    ]
    rows = {}
    if bare:
        parameters = [member.parameters[0] for member in bare]
        gradients = [per_example_gradients(outputs, column, parameters) for column in columns]
        for member, grads in zip(bare, zip(*gradients, strict=True), strict=True):
            rows[member] = parameter_rows(torch.stack(grads))
    return stacked, rows


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
