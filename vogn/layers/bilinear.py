"""Bilinear layers: linear in the products of their two inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import linear_rows, matrix_layout, row_dtype
from vogn.linalg.layout import Layout
from vogn.linalg.rows import Rows
from vogn.types import Shape


@register_layer(nn.Bilinear)
class BilinearRule(LayerRule):
    """``nn.Bilinear`` on ``(N, *middle, d_1)`` and ``(N, *middle, d_2)``; one-dimensional inputs are one example.

    ``y_o = x_1^T W_o x_2 + b_o`` is linear in the flattened outer product ``x_1 (x) x_2``: the block is
    ``(d_out, d_1 * d_2 (+ 1))``.
    """

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        assert isinstance(module, nn.Bilinear)
        return matrix_layout(names, shapes, (module.out_features, module.in1_features * module.in2_features))

    def saved(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """Both inputs."""
        return (inputs[0].detach(), inputs[1].detach())

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        left, right = saved
        if left.ndim == 1:
            left, right, grad_output = left.unsqueeze(0), right.unsqueeze(0), grad_output.unsqueeze(1)
        dtype = row_dtype(left, right, grad_output)
        products = left.to(dtype).unsqueeze(-1) * right.to(dtype).unsqueeze(-2)
        return linear_rows(attributes, products.flatten(-2), grad_output)
