"""Parameters without a pair: explicit per-example gradients, every element its own sub-block."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import row_dtype, stack_layout, stack_rows
from vogn.linalg.layout import Layout, MatrixLayout, StackLayout
from vogn.linalg.rows import Rows
from vogn.types import Shape


def parameter_layout(name: str, shape: Shape) -> Layout:
    """The packing of one parameter on its own.

    Args:
        name: full parameter name.
        shape: its shape. Matrices and convolution kernels become ``(shape[0], rest)``; vectors and scalars become
            ``(numel, 1, 1)``.
    """
    shape = tuple(shape)
    if len(shape) < 2:
        return StackLayout((name,), (shape,))
    return MatrixLayout((name,), (shape,), (shape[0], math.prod(shape[1:])))


def parameter_rows(gradients: Tensor) -> Rows:
    """Rows of explicit per-example gradients.

    Args:
        gradients: ``(K, N, *shape)``.

    Returns:
        Rows of block ``(numel, 1, 1)``: the packing of a :class:`StackLayout` with this one parameter.
    """
    return stack_rows(gradients.reshape(*gradients.shape[:2], math.prod(gradients.shape[2:]), 1))


@register_layer(nn.PReLU)
class PReLURule(LayerRule):
    """``nn.PReLU`` on ``(N, channels, *space)`` with one slope, or one slope per channel."""

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        return stack_layout(names, shapes)

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        assert isinstance(module, nn.PReLU)
        (x,) = saved
        if x.ndim == 0:
            x = x.unsqueeze(0)
        dtype = row_dtype(x, grad_output)
        slopes = module.num_parameters
        negative = x.to(dtype).clamp_max(0).reshape(x.shape[0], slopes if slopes > 1 else 1, -1)
        g = grad_output.to(dtype).reshape(-1, *negative.shape)
        return parameter_rows(torch.einsum("knct,nct->knc", g, negative))
