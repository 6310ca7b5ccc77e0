"""Convolutions: the input of output position ``t`` is the patch that the kernel sees there.

Source: Grosse and Martens 2016, "A Kronecker-factored approximate Fisher matrix for convolution layers", section 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import bias_rows, matrix_layout, row_dtype
from vogn.linalg.layout import Layout
from vogn.linalg.patch_rows import PatchRows
from vogn.linalg.patches import Patches, grouped_gradients
from vogn.linalg.rows import Rows
from vogn.types import Shape


@register_layer(nn.Conv1d, nn.Conv2d, nn.Conv3d)
class ConvolutionRule(LayerRule):
    """``nn.Conv1d``, ``nn.Conv2d``, ``nn.Conv3d`` with every stride, padding, padding mode, dilation and grouping.

    With one group the block is ``(c_out, c_in * kernel (+ 1))``; with more, ``(groups, c_out / groups, ...)``: the
    groups see disjoint channels and are independent sub-blocks.
    """

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        assert isinstance(module, _ConvNd)
        groups = module.groups
        d_in = module.in_channels // groups * math.prod(module.kernel_size)
        lead = (groups,) if groups > 1 else ()
        return matrix_layout(names, shapes, (*lead, module.out_channels // groups, d_in))

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        assert isinstance(module, _ConvNd)
        (x,) = saved
        if x.ndim == len(module.kernel_size) + 1:  # unbatched input
            x, grad_output = x.unsqueeze(0), grad_output.unsqueeze(1)
        dtype = row_dtype(x, grad_output)
        g = grouped_gradients(grad_output, module.groups, dtype)
        if "weight" not in attributes:
            return bias_rows(g)
        patches = Patches(
            padded(module, x).to(dtype),
            tuple(module.kernel_size),
            tuple(module.stride),
            tuple(module.dilation),
            module.groups,
            bias="bias" in attributes,
            zeros=tuple(padding_pairs(module)) if module.padding_mode == "zeros" else (),
        )
        return PatchRows(patches, g)


def padded(module: _ConvNd, x: Tensor) -> Tensor:
    """The input that the kernel slides over."""
    pads = _pads(module)
    if not any(pads):
        return x
    return F.pad(x, pads, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)


def padding_pairs(module: _ConvNd) -> list[tuple[int, int]]:
    """Padding before and after each dimension, first dimension first. ``"same"`` puts the odd one after."""
    if module.padding == "valid":
        return [(0, 0)] * len(module.kernel_size)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in totals]
    return [(int(p), int(p)) for p in module.padding]


def _pads(module: _ConvNd) -> list[int]:
    """Padding in the order of ``F.pad``: last dimension first, before and after."""
    return list(itertools.chain.from_iterable(reversed(padding_pairs(module))))
