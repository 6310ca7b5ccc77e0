"""Fully connected layers: ``J_n = sum_t g_nt a_nt^T`` over all middle dimensions ``t``."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import linear_rows, matrix_layout
from vogn.linalg.layout import Layout
from vogn.linalg.rows import Rows
from vogn.types import Shape


@register_layer(nn.Linear)
class LinearRule(LayerRule):
    """``nn.Linear`` on inputs ``(N, *middle, d_in)``; a one-dimensional input is one example."""

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        assert isinstance(module, nn.Linear)
        return matrix_layout(names, shapes, (module.out_features, module.in_features))

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        (x,) = saved
        if x.ndim == 1:
            x, grad_output = x.unsqueeze(0), grad_output.unsqueeze(1)
        return linear_rows(attributes, x, grad_output)
