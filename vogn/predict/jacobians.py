"""Jacobians of a network's outputs in its weights, example by example, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils._pytree import tree_map

from vogn.predict.evaluation import calls_of, concatenated, plain_attention, undisturbed, weights_for
from vogn.predict.inputs import batches_of

JACOBIAN_BYTES = 1 << 28
"""As many examples at a time as fit into so much memory; at least one."""


def jacobians(
    model: nn.Module, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], call: Any
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Outputs and Jacobians of the examples of one call.

    Args:
        model: in evaluation mode.
        weights: ``{name: shape}``, in which the Jacobians are wanted; others are used as they are.
        buffers: values of the buffers, and of parameters that are to have others than the model's.
        call: ``(args, kwargs)`` of the model; tensors have the examples in their first dimension.

    Yields:
        ``(outputs (b, K), {name: (b, K, *shape)})`` of consecutive examples.
    """
    wanted = dict(weights)

    def outputs_of(moving: dict[str, Tensor], inputs: Any) -> tuple[Tensor, Tensor]:
        args, kwargs = tree_map(lambda leaf: leaf.unsqueeze(0) if isinstance(leaf, Tensor) else leaf, inputs)
        output = functional_call(model, (moving, dict(buffers)), args, kwargs).reshape(-1)
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


def jacobian(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    x: Any,
    *,
    names: Collection[str] | None = None,
    batch_size: int = 256,
    seed: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Outputs and their Jacobians, as ``posterior.functional_variance`` takes them.

    The model runs in evaluation mode and is left as it was. Examples are differentiated together where
    ``torch.func.vmap`` can run the model, and else one after the other. All Jacobians are kept: ``N K`` times the
    weights' memory.

    Args:
        model: returns a tensor ``(N, ...)``, each example's outputs from that example alone.
        weights: ``{name: shape}``, such as ``posterior.mean()``; parameters without one are used as they are.
        x: as in :func:`vogn.predict.predict`.
        names: the weights to differentiate with respect to; ``None`` is all of them.
        batch_size: examples per call of the model when ``x`` holds tensors, >= 1.
        seed: seeds torch's generators meanwhile, for models that draw random numbers in evaluation mode.

    Returns:
        Outputs ``(N, ...)`` and ``{name: (N, K, *shape)}`` with the ``K`` outputs of an example in row-major order.

    Raises:
        ValueError: if the weights do not fit the model, a name has none, or there are no examples.
        TypeError: if the model does not return a tensor.

    Example:
        >>> import torch
        >>> from vogn.predict import jacobian
        >>> model = torch.nn.Linear(3, 2)
        >>> outputs, slopes = jacobian(model, dict(model.named_parameters()), torch.ones(5, 3))
        >>> {name: tuple(slope.shape) for name, slope in slopes.items()}
        {'weight': (5, 2, 2, 3), 'bias': (5, 2, 2)}
    """
    wanted = list(weights if names is None else names)
    if not wanted or any(name not in weights for name in wanted):
        raise ValueError(f"names={wanted} must name at least one of the weights and no others: {list(weights)[:5]} ...")
    outputs: list[Tensor] = []
    parts: list[dict[str, Tensor]] = []
    with undisturbed(model, seed=seed), plain_attention():
        fixed = {name: tensor.detach() for name, tensor in weights_for(model, weights).items()}
        moving = {name: fixed.pop(name) for name in wanted}
        for call in calls_of(model, {}, batches_of(x, batch_size)):
            outputs.append(call.outputs({**fixed, **moving}))
            parts += [found for _, found in jacobians(model, moving, {**call.buffers, **fixed}, call.inputs)]
    together = concatenated(outputs)
    return together, {name: torch.cat([part[name] for part in parts]) for name in wanted}
