"""Jacobians of a network's outputs in its weights, example by example."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from vogn.predict.evaluation import device_of, undisturbed, weights_for
from vogn.predict.inputs import Arguments, batches_of

Named = dict[str, Tensor]
OutputsOf = Callable[[Named, list[Tensor]], Tensor]
"""Outputs ``(K,)`` of one example from weights and the example's tensors."""


def jacobian(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    x: Any,
    *,
    names: Collection[str] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> tuple[Tensor, Named]:
    """Outputs and their Jacobians, as ``posterior.functional_variance`` takes them.

    The model runs in evaluation mode and is left as it was. Examples are differentiated together where
    ``torch.func.vmap`` can run the model, and else one output of one example after the other.

    Args:
        model: returns a tensor ``(N, ...)``, each example's outputs from that example alone.
        weights: ``{name: shape}``, such as ``posterior.mean()``; parameters without one are used as they are.
        x: as in :func:`vogn.predict.predict`.
        names: the weights to differentiate with respect to; ``None`` is all of them.
        batch_size: examples that are differentiated together, >= 1.
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
    unknown = [name for name in wanted if name not in weights]
    if unknown or not wanted:
        raise ValueError(f"names={wanted} must name at least one of the weights and no others: {list(weights)[:5]} ...")
    if batch_size < 1:
        raise ValueError(f"batch_size must be >= 1, got {batch_size}")
    with undisturbed(model, seed=seed):
        ready = {name: tensor.detach() for name, tensor in weights_for(model, weights).items()}
        variable = {name: ready.pop(name) for name in wanted}
        parts = [_of_batch(model, variable, ready, batch) for batch in batches_of(x, batch_size)]
    if not parts:
        raise ValueError("x holds no examples: a Jacobian needs at least one")
    outputs = torch.cat([part[0] for part in parts])
    return outputs, {name: torch.cat([part[1][name] for part in parts]) for name in wanted}


def _of_batch(model: nn.Module, variable: Named, fixed: Named, batch: Arguments) -> tuple[Tensor, Named]:
    """Outputs ``(B, ...)`` and Jacobians ``{name: (B, K, *shape)}`` of one batch."""
    leaves, form = tree_flatten(batch.to(device_of(model)))
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def call(weights: Named, tensors: list[Tensor]) -> Tensor:
        given = iter(tensors)
        args, kwargs = tree_unflatten([next(given) if isinstance(leaf, Tensor) else leaf for leaf in leaves], form)
        output = functional_call(model, ({**fixed, **weights}, buffers), args, kwargs)
        if not isinstance(output, Tensor):
            raise TypeError(f"a Jacobian needs a model that returns a tensor of outputs, got {type(output).__name__}")
        return output

    def of_example(weights: Named, tensors: list[Tensor]) -> Tensor:
        return call(weights, [tensor.unsqueeze(0) for tensor in tensors]).flatten()

    outputs = call(variable, inputs)
    try:
        return outputs, vmap(jacrev(of_example), in_dims=(None, 0))(variable, inputs)
    except RuntimeError:  # an operation that vmap cannot take; what is wrong with the model itself is raised again
        examples = zip(*(tensor.unbind(0) for tensor in inputs), strict=True)
        rows = [_one_by_one(of_example, variable, list(example)) for example in examples]
        return outputs, {name: torch.stack([row[name] for row in rows]) for name in variable}


def _one_by_one(outputs_of: OutputsOf, weights: Named, example: list[Tensor]) -> Named:
    """Jacobians ``{name: (K, *shape)}`` of one example by one backward pass for each output."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    with torch.enable_grad():
        outputs = outputs_of(leaves, example)
        found = [
            torch.autograd.grad(output, list(leaves.values()), retain_graph=True, materialize_grads=True)
            for output in outputs
        ]
    return {name: torch.stack([row[i] for row in found]) for i, name in enumerate(leaves)}
