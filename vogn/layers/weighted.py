"""Layers whose weight gradient is ``sum_n c_n u_n`` instead of ``sum_n u_n``; what they pass on is untouched.

The numbers ``c (N,)`` multiply the output gradient on its way to the parameters only, so that a backward pass costs one
elementwise product more than an ordinary one. Adding a layer is one decorated function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.conv import _ConvNd

from vogn.layers.convolution import padding_pairs

Weights = Callable[[Tensor], Tensor | None]
"""From an output gradient ``(N, ...)`` to ``c (N,)`` in its type; ``None`` for ones."""
WeightedForward = Callable[[Any, Tensor, Weights], Tensor]
"""``output = forward(module, input, weights)``."""

WEIGHTED: dict[type[nn.Module], WeightedForward] = {}
"""Module type to forward. Looked up by exact type: a subclass may compute something else."""


def register_weighted(*types: type[nn.Module]) -> Callable[[WeightedForward], WeightedForward]:
    """Function decorator: use the forward for the given module types."""

    def decorate(function: WeightedForward) -> WeightedForward:
        WEIGHTED.update(dict.fromkeys(types, function))
        return function

    return decorate


def _weigh(weights: Weights, grad: Tensor) -> Tensor:
    c = weights(grad)
    return grad if c is None else grad * c.view(-1, *(1,) * (grad.ndim - 1))


def _autocast(x: Tensor, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """What autocast would do to the operands: it does not see inside a function of our own."""
    if not torch.is_autocast_enabled(x.device.type):
        return (x, *tensors)
    dtype = torch.get_autocast_dtype(x.device.type)
    return tuple(None if tensor is None else tensor.to(dtype) for tensor in (x, *tensors))


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, weights: Weights) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.weights = weights
        return F.linear(x, weight, bias)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        grad_x = grad @ weight if needs_x else None
        flat = _weigh(ctx.weights, grad).flatten(0, -2)
        grad_weight = flat.T @ x.flatten(0, -2) if needs_weight else None
        return grad_x, grad_weight, flat.sum(0) if needs_bias else None, None


@register_weighted(nn.Linear)
def linear(module: nn.Linear, x: Tensor, weights: Weights) -> Tensor:
    """``nn.Linear`` on ``(N, *middle, d_in)``; a one-dimensional input is one example."""
    batch = x.unsqueeze(0) if x.ndim == 1 else x
    operands = _autocast(batch, module.weight, module.bias)
    output: Tensor = _Linear.apply(*operands, weights)
    return output.squeeze(0) if x.ndim == 1 else output


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, options: tuple[Any, ...], weights: Weights
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.options, ctx.weights = options, weights
        output: Tensor = torch.convolution(x, weight, bias, *options)
        return output

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grads: list[Tensor | None] = [None, None, None]
        sizes = [weight.shape[0]]
        if needs_x:
            mask = [True, False, False]
            grads[0] = torch.ops.aten.convolution_backward(grad, x, weight, sizes, *ctx.options, mask)[0]
        if needs_weight or needs_bias:
            mask = [False, needs_weight, needs_bias]
            weighted = _weigh(ctx.weights, grad)
            grads[1:] = torch.ops.aten.convolution_backward(weighted, x, weight, sizes, *ctx.options, mask)[1:]
        return (*grads, None, None)


@register_weighted(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(module: _ConvNd, x: Tensor, weights: Weights) -> Tensor:
    """``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d`` with every stride, padding, dilation and grouping."""
    dims = len(module.kernel_size)
    batch = x.unsqueeze(0) if x.ndim == dims + 1 else x
    pads = padding_pairs(module)
    symmetric = all(before == after for before, after in pads)
    padding = [before for before, _ in pads]
    if module.padding_mode != "zeros" or not symmetric:
        flat = [size for pair in reversed(pads) for size in pair]
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        batch, padding = F.pad(batch, flat, mode=mode), [0] * dims
    options = (list(module.stride), padding, list(module.dilation), False, [0] * dims, module.groups)
    batch, weight, bias = _autocast(batch, module.weight, module.bias)
    output: Tensor = _Convolution.apply(batch, weight, bias, options, weights)
    return output.squeeze(0) if x.ndim == dims + 1 else output
