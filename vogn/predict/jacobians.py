"""Jacobians of a network's outputs in its weights, example by example, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap
from torch.utils._pytree import tree_flatten, tree_unflatten

from vogn.predict.evaluation import calls_of, undisturbed, weights_for
from vogn.predict.inputs import batches_of

JACOBIAN_BYTES = 1 << 28
"""As many examples at a time as fit into so much memory; at least one."""

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
        batch_size: examples per call of the model, >= 1.
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
    outputs: list[Tensor] = []
    parts: list[Named] = []
    with undisturbed(model, seed=seed):
        ready = {name: tensor.detach() for name, tensor in weights_for(model, weights).items()}
        variable = {name: ready.pop(name) for name in wanted}
        for call in calls_of(model, {}, batches_of(x, batch_size)):
            outputs.append(call.outputs({**ready, **variable}))
            parts += [found for _, found in jacobians(model, variable, call.buffers, call.inputs, fixed=ready)]
    if not parts:
        raise ValueError("x holds no examples: a Jacobian needs at least one")
    return torch.cat(outputs), {name: torch.cat([part[name] for part in parts]) for name in wanted}


def jacobians(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    buffers: Mapping[str, Tensor],
    call: Any,
    *,
    fixed: Mapping[str, Tensor] | None = None,
) -> Iterator[tuple[Tensor, Named]]:
    """Outputs and Jacobians of the examples of one call.

    Args:
        model: in evaluation mode.
        weights: ``{name: shape}``, in which the Jacobians are wanted.
        buffers: values of the buffers.
        call: ``(args, kwargs)`` of the model; tensors have the examples in their first dimension.
        fixed: values of other parameters; those that are named nowhere are used as they are.

    Yields:
        ``(outputs (b, K), {name: (b, K, *shape)})`` of consecutive examples.
    """
    wanted = dict(weights)
    leaves, form = tree_flatten(call)
    inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]

    def outputs_of(moving: Named, tensors: list[Tensor]) -> Tensor:
        given = iter(tensors)
        whole = [next(given).unsqueeze(0) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, kwargs = tree_unflatten(whole, form)
        own = {name: buffer.clone() for name, buffer in buffers.items()}  # which the model may change
        output = functional_call(model, ({**(fixed or {}), **moving}, own), args, kwargs)
        return torch.as_tensor(output).reshape(-1)

    size = sum(t.numel() * t.element_size() for t in wanted.values())
    start, at_a_time = 0, 1
    while start < len(inputs[0]):
        outputs, found = _of_examples(outputs_of, wanted, [tensor[start : start + at_a_time] for tensor in inputs])
        yield outputs, found
        start += len(outputs)
        at_a_time = max(1, JACOBIAN_BYTES // max(1, size * outputs.shape[-1]))


def _of_examples(outputs_of: OutputsOf, weights: Named, inputs: list[Tensor]) -> tuple[Tensor, Named]:
    """All examples in one vectorised call, or one output of one example after the other."""

    def twice(moving: Named, tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        output = outputs_of(moving, tensors)
        return output, output

    try:
        found, outputs = vmap(jacrev(twice, has_aux=True), in_dims=(None, 0))(weights, inputs)
        return outputs, found
    except (RuntimeError, NotImplementedError):  # what is wrong with the model itself is raised again
        examples = zip(*(tensor.unbind(0) for tensor in inputs), strict=True)
        rows = [_one_by_one(outputs_of, weights, list(example)) for example in examples]
        stacked = {name: torch.stack([row[name] for _, row in rows]) for name in weights}
        return torch.stack([output for output, _ in rows]), stacked


def _one_by_one(outputs_of: OutputsOf, weights: Named, example: list[Tensor]) -> tuple[Tensor, Named]:
    """Outputs ``(K,)`` and Jacobians ``{name: (K, *shape)}`` of one example, by one backward pass for each output."""
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in weights.items()}
    with torch.enable_grad():
        outputs = outputs_of(leaves, example)
        found = [
            torch.autograd.grad(output, list(leaves.values()), retain_graph=True, materialize_grads=True)
            for output in outputs
        ]
    return outputs.detach(), {name: torch.stack([row[i] for row in found]) for i, name in enumerate(leaves)}
