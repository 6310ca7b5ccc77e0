"""Jacobians of a network's outputs in its weights, example by example, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils._pytree import tree_map

JACOBIAN_BYTES = 1 << 28
"""As many examples at a time as fit into so much memory; at least one."""


def jacobians(
    model: nn.Module, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], call: Any
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Outputs and Jacobians of the examples of one call.

    Args:
        model: in evaluation mode.
        weights: ``{name: shape}``, in which the Jacobians are wanted; others are used as they are.
        buffers: values of the buffers.
        call: ``(args, kwargs)`` of the model; tensors have the examples in their first dimension.

    Yields:
        ``(outputs (b, K), {name: (b, K, *shape)})`` of consecutive examples.
    """
    wanted = dict(weights)

    def outputs_of(moving: dict[str, Tensor], inputs: Any) -> tuple[Tensor, Tensor]:
        args, kwargs = tree_map(lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, inputs)
        own = {name: buffer.clone() for name, buffer in buffers.items()}  # which the model may change
        output = functional_call(model, (moving, own), args, kwargs).reshape(-1)
        return output, output

    def of_one(inputs: Any) -> tuple[dict[str, Tensor], Tensor]:
        found: tuple[dict[str, Tensor], Tensor] = jacrev(outputs_of, has_aux=True)(wanted, inputs)
        return found

    tensors = [leaf for leaf in (*call[0], *call[1].values()) if isinstance(leaf, Tensor)]
    count = len(tensors[0])
    size = sum(t.numel() * t.element_size() for t in wanted.values())
    at_a_time = 1
    start = 0
    while start < count:
        part = slice(start, min(start + at_a_time, count))
        inputs = tree_map(lambda leaf, part=part: leaf[part] if isinstance(leaf, Tensor) else leaf, call)
        found, output = _together(of_one, inputs, part.stop - part.start)
        yield output, found
        start = part.stop
        at_a_time = max(1, JACOBIAN_BYTES // max(1, size * output.shape[-1]))


def _together(of_one: Any, inputs: Any, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """All examples in one vectorised call, or one after the other where the network cannot be vectorised."""
    dims = tree_map(lambda leaf: 0 if isinstance(leaf, Tensor) else None, inputs)
    if count > 1:
        try:
            found: tuple[dict[str, Tensor], Tensor] = vmap(of_one, in_dims=(dims,))(inputs)
            return found
        except (RuntimeError, NotImplementedError):
            pass
    ones = [
        of_one(tree_map(lambda leaf, k=k: leaf[k] if isinstance(leaf, Tensor) else leaf, inputs)) for k in range(count)
    ]
    stacked = {name: torch.stack([jacobian[name] for jacobian, _ in ones]) for name in ones[0][0]}
    return stacked, torch.stack([output for _, output in ones])
