"""Slow and obvious curvature, for tests and for checking a new layer or structure.

Nothing here knows the layer rules. Vectors are the parameters that require a gradient, flattened in the order of
``model.named_parameters()``. Dense matrices are the curvature of the *mean* loss per example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vogn.errors import UnsupportedObservationError

LossFunction = Callable[[Tensor, Tensor], Tensor]
"""``(outputs, targets)`` to the *sum* of the per-example losses."""


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def per_example_gradients(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: LossFunction
) -> dict[str, Tensor]:
    """Per-example gradients, one forward and backward pass per example.

    Args:
        model: a model that treats examples independently (no batch normalisation in training mode).
        inputs: ``(N, ...)``.
        targets: ``(N, ...)``.
        loss_fn: sum of the losses of a batch; called with batches of one.

    Returns:
        ``{name: (N, *shape)}``.
    """
    parameters = trainable(model)
    gradients = []
    for n in range(len(inputs)):
        loss = loss_fn(model(inputs[n : n + 1]), targets[n : n + 1])
        gradients.append(torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True))
    return {name: torch.stack(parts) for name, parts in zip(parameters, zip(*gradients, strict=True), strict=True)}


def zero_tensor_gradients(
    model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: LossFunction
) -> dict[str, Tensor]:
    """Per-example gradients taken by row, also where examples are coupled.

    A zero tensor is added to every layer's output; the gradient ``g`` of the loss with respect to it is the output
    gradient. Row ``n`` is then the gradient of ``<layer(x)[n], g[n]>``, found by differentiating the layer alone.

    Args:
        model: a model whose parameters all belong to modules without children.
        inputs: ``(N, ...)``.
        targets: ``(N, ...)``.
        loss_fn: sum of the losses of a batch.

    Returns:
        ``{name: (N, *shape)}``; the sum over ``N`` is the batch gradient.

    Raises:
        UnsupportedObservationError: if a parameter sits in a module that has children.
    """
    names = {parameter: name for name, parameter in trainable(model).items()}
    layers = [m for m in model.modules() if any(p in names for p in m.parameters(recurse=False))]
    for layer in layers:
        if next(layer.children(), None) is not None:
            raise UnsupportedObservationError(
                f"{type(layer).__name__} has both parameters and children; use per_example_gradients instead"
            )
    calls: list[tuple[nn.Module, tuple[Any, ...], Tensor]] = []

    def add_zero(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        zero = torch.zeros_like(output, requires_grad=True)
        calls.append((layer, tuple(arg.detach().clone() for arg in args), zero))
        return output + zero

    handles = [layer.register_forward_hook(add_zero) for layer in layers]
    try:
        loss = loss_fn(model(inputs), targets)
    finally:
        for handle in handles:
            handle.remove()
    output_gradients = torch.autograd.grad(loss, [zero for *_, zero in calls], materialize_grads=True)
    total = {name: torch.zeros(len(inputs), *p.shape, dtype=p.dtype) for p, name in names.items()}
    for (layer, args, _), g in zip(calls, output_gradients, strict=True):
        for attribute, rows in _rows_of_layer(layer, args, g).items():
            parameter = getattr(layer, attribute)
            if parameter in names:
                total[names[parameter]] += rows
    return total


def _rows_of_layer(layer: nn.Module, args: tuple[Any, ...], g: Tensor) -> dict[str, Tensor]:
    """Gradient of ``<layer(*args)[n], g[n]>`` for every ``n``; the layer's buffers are left alone."""
    local = {name: p.detach().requires_grad_() for name, p in layer.named_parameters(recurse=False)}
    buffers = {name: b.clone() for name, b in layer.named_buffers(recurse=False)}
    output = functional_call(layer, (local, buffers), args)
    rows = [
        torch.autograd.grad(output[n], list(local.values()), g[n], retain_graph=True, materialize_grads=True)
        for n in range(len(g))
    ]
    return {name: torch.stack(parts) for name, parts in zip(local, zip(*rows, strict=True), strict=True)}


def flat(gradients: dict[str, Tensor]) -> Tensor:
    """``{name: (N, *shape)}`` as ``(N, D)``."""
    return torch.cat([g.reshape(len(g), -1) for g in gradients.values()], 1)


def jacobian(model: nn.Module, inputs: Tensor) -> Tensor:
    """Derivative of the outputs, ``(N, K, D)`` with all output dimensions but the first flattened into ``K``."""
    parameters = list(trainable(model).values())
    outputs = model(inputs).flatten(1)
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(o, parameters, retain_graph=True, materialize_grads=True)])
        for o in outputs.flatten()
    ]
    return torch.stack(rows).unflatten(0, outputs.shape)


def ggn(model: nn.Module, inputs: Tensor, output_hessian: Callable[[Tensor], Tensor]) -> Tensor:
    """Generalised Gauss-Newton matrix ``(1/N) sum_n J_n^T H_n J_n``, ``(D, D)``.

    Args:
        model: the model.
        inputs: ``(N, ...)``.
        output_hessian: outputs ``(N, *out)`` to Hessians ``(N, K, K)`` of the per-example losses, ``K = prod(out)``.
    """
    jacobians = jacobian(model, inputs)
    with torch.no_grad():
        hessians = output_hessian(model(inputs))
    return torch.einsum("nkd,nkl,nle->de", jacobians, hessians, jacobians) / len(inputs)


def empirical_fisher(model: nn.Module, inputs: Tensor, targets: Tensor, loss_fn: LossFunction) -> Tensor:
    """``(1/N) sum_n grad_n grad_n^T`` with the given labels, ``(D, D)``; arguments as :func:`per_example_gradients`."""
    rows = flat(per_example_gradients(model, inputs, targets, loss_fn))
    return rows.T @ rows / len(rows)
