"""Layers whose weight gradient is ``sum_n c_n u_n`` instead of ``sum_n u_n``; what they pass on is untouched.

The numbers ``c (N,)`` multiply the output gradient on its way to the parameters only, so that a backward pass costs one
elementwise product more than an ordinary one. Where somebody has the gradients already, linear layers and convolutions
take them instead. Adding a layer is one decorated function.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm as _BatchNormModule
from torch.nn.modules.conv import _ConvNd

from vogn.layers.base import nearest
from vogn.layers.convolution import padding_pairs

ParameterGradients = tuple[Tensor | None, ...]
"""The gradients of weight and bias, where they are wanted."""
Weights = Callable[[Tensor], Tensor | ParameterGradients | None]
"""From an output gradient ``(N, ...)`` to ``c (N,)`` in its type; ``None`` for ones; or to the finished gradients."""
WeightedForward = Callable[[Any, Tensor, Weights], Tensor]
"""``output = forward(module, input, weights)``."""

WEIGHTED: dict[type[nn.Module], WeightedForward] = {}
"""Module type to forward. Looked up by :func:`find_weighted`."""


def register_weighted(*types: type[nn.Module]) -> Callable[[WeightedForward], WeightedForward]:
    """Function decorator: use the forward for the given module types."""

    def decorate(function: WeightedForward) -> WeightedForward:
        WEIGHTED.update(dict.fromkeys(types, function))
        return function

    return decorate


def find_weighted(module: nn.Module) -> WeightedForward | None:
    """The weighted forward for ``module``: of its type or of the nearest registered base class that shares its
    ``forward``."""
    return nearest(WEIGHTED, module)


def _gradients(
    ctx: Any, grad: Tensor, backward: Callable[[Tensor, list[bool]], tuple[Tensor | None, ...]]
) -> tuple[Tensor | None, ...]:
    """Those of input, weight and bias, from the layer's ``backward(grad, which of them are wanted)``."""
    needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
    grad_x = backward(grad, [True, False, False])[0] if needs_x else None
    if not (needs_weight or needs_bias):
        return grad_x, None, None
    found = ctx.weights(grad)
    if isinstance(found, tuple):
        return grad_x, *found
    weighted = grad if found is None else grad * found.view(-1, *(1,) * (grad.ndim - 1))
    return grad_x, *backward(weighted, [False, needs_weight, needs_bias])[1:]


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
        output = x.new_empty((*x.shape[:-1], weight.shape[0]))  # a view could not be changed in place afterwards
        rows = output.view(-1, weight.shape[0])
        if bias is None:
            torch.mm(x.flatten(0, -2), weight.T, out=rows)
        else:
            torch.addmm(bias, x.flatten(0, -2), weight.T, out=rows)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors

        def gradients(grad: Tensor, mask: list[bool]) -> tuple[Tensor | None, ...]:
            flat = grad.reshape(-1, grad.shape[-1])  # flatten has no rule for vectorised backward passes
            return (
                grad @ weight if mask[0] else None,
                flat.T @ x.reshape(-1, x.shape[-1]) if mask[1] else None,
                flat.sum(0) if mask[2] else None,
            )

        return *_gradients(ctx, grad, gradients), None


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
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors

        def gradients(grad: Tensor, mask: list[bool]) -> tuple[Tensor | None, ...]:
            operands = (grad, x, weight, [weight.shape[0]], *ctx.options, mask)
            found: tuple[Tensor | None, ...] = torch.ops.aten.convolution_backward(*operands)
            return found

        return *_gradients(ctx, grad, gradients), None, None


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
    output: Tensor = _Convolution.apply(*_autocast(batch, module.weight, module.bias), options, weights)
    return output.squeeze(0) if x.ndim == dims + 1 else output


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        batch: bool,
        factor: float,
        eps: float,
        weights: Weights,
    ) -> Tensor:
        output, mean, scale = torch.native_batch_norm(x, weight, bias, *running, batch, factor, eps)
        ctx.save_for_backward(x, weight, mean, scale, *(() if batch else running))
        ctx.batch, ctx.eps, ctx.weights = batch, eps, weights
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, *running = ctx.saved_tensors
        mean_and_var = running or [None, None]

        def gradients(grad: Tensor, mask: list[bool]) -> tuple[Tensor | None, ...]:
            operands = (grad, x, weight, *mean_and_var, mean, scale, ctx.batch, ctx.eps, mask)
            found: tuple[Tensor | None, ...] = torch.ops.aten.native_batch_norm_backward(*operands)
            return found

        return *_gradients(ctx, grad, gradients), None, None, None, None, None


@register_weighted(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(module: _BatchNormModule, x: Tensor, weights: Weights) -> Tensor:
    """``nn.BatchNorm1d``, ``nn.BatchNorm2d``, ``nn.BatchNorm3d``, running statistics included.

    In training mode every example's normalised values are its own part of the gradient, as in the layer's rows.
    """
    module._check_input_dim(x)
    tracked = module.running_mean, module.running_var
    batch = module.training or tracked == (None, None)
    factor = module.momentum or 0.0
    if module.training and module.track_running_stats and module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if module.momentum is None:  # a cumulative average
            factor = 1.0 / float(module.num_batches_tracked)
    running = tracked if not module.training or module.track_running_stats else (None, None)
    operands = (x, module.weight, module.bias, running, batch, factor, module.eps, weights)
    output: Tensor = _BatchNorm.apply(*operands)
    return output


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: list[int], eps: float, weights: Weights
    ) -> Tensor:
        output, mean, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
        ctx.save_for_backward(x, weight, bias, mean, scale)
        ctx.shape, ctx.weights = shape, weights
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, scale = ctx.saved_tensors

        def gradients(grad: Tensor, mask: list[bool]) -> tuple[Tensor | None, ...]:
            operands = (grad, x, ctx.shape, mean, scale, weight, bias, mask)
            found: tuple[Tensor | None, ...] = torch.ops.aten.native_layer_norm_backward(*operands)
            return found

        return *_gradients(ctx, grad, gradients), None, None, None


@register_weighted(nn.LayerNorm)
def layer_norm(module: nn.LayerNorm, x: Tensor, weights: Weights) -> Tensor:
    """``nn.LayerNorm`` on ``(N, *middle, *normalised)``."""
    operands = (x, module.weight, module.bias, list(module.normalized_shape), module.eps, weights)
    output: Tensor = _LayerNorm.apply(*operands)
    return output
