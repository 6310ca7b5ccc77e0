"""Convolutions: the input of output position ``t`` is the patch that the kernel sees there.

Source: Grosse and Martens 2016, "A Kronecker-factored approximate Fisher matrix for convolution layers", section 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import bias_rows, matrix_layout, row_dtype
from vogn.linalg.layout import Layout
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
        return Rows(a=patch_matrix(_patches(module, x), module.groups, "bias" in attributes, dtype), g=g)


def patch_matrix(patches: Tensor, groups: int, bias: bool, dtype: torch.dtype) -> Tensor:
    """Patches ``(N, c_in, *out, *kernel)`` as ``(*lead, N, T, c_in / groups * kernel (+ 1))``, written at most once."""
    dims = (patches.ndim - 2) // 2
    patches = patches.unflatten(1, (groups, -1))
    patches = patches.permute(1, 0, *range(3, 3 + dims), 2, *range(3 + dims, 3 + 2 * dims))
    patches = patches if groups > 1 else patches.squeeze(0)
    shape = patches.shape
    rest = len(shape) - 2 * dims - 1
    positions, d_in = math.prod(shape[rest : rest + dims]), math.prod(shape[rest + dims :])
    if not bias:
        return patches.to(dtype).reshape(*shape[:rest], positions, d_in)
    a = torch.empty((*shape[:rest], positions, d_in + 1), dtype=dtype, device=patches.device)
    a[..., d_in] = 1
    a[..., :d_in].unflatten(-1, shape[rest + dims :]).unflatten(rest, shape[rest : rest + dims]).copy_(patches)
    return a


def grouped_gradients(grad_output: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """``(K, N, c_out, *out)`` as ``(*lead, K, N, T, c_out / groups)``."""
    g = grad_output.to(dtype).flatten(3).unflatten(2, (groups, -1)).permute(2, 0, 1, 4, 3)
    return g if groups > 1 else g.squeeze(0)


def sliding_patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Patches of ``(N, c, *space)`` as a strided view ``(N, c, *out, *kernel)``."""
    for dim, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + dim, spread * (size - 1) + 1, step)[..., ::spread]
    return x


def _patches(module: _ConvNd, x: Tensor) -> Tensor:
    """Patches as a strided view ``(N, c_in, *out, *kernel)`` of the padded input."""
    pads = _pads(module)
    if any(pads):
        x = F.pad(x, pads, mode="constant" if module.padding_mode == "zeros" else module.padding_mode)
    return sliding_patches(x, module.kernel_size, module.stride, module.dilation)


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
