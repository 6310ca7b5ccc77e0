"""Transposed convolutions: convolutions of the input with zeros between its positions.

With stride ``s``, padding ``p`` and dilation ``d``, tap ``k`` shows output position ``q`` the input position
``(q + p - d k) / s`` where that is a position of the input, and zero elsewhere. The input of output position ``q`` is
this patch, so that weight and bias share their positions as in a convolution: the block is
``(c_out, c_in * kernel (+ 1))``, the rows are exact, and both Kronecker factors mean what they mean for a convolution.
The other reading (one pair per *input* position: its channels, and the output gradients of the kernel's taps) has
smaller inputs, but no column for the bias, whose gradient is a sum over *output* positions.

Source: Grosse and Martens 2016, "A Kronecker-factored approximate Fisher matrix for convolution layers", section 3,
for the convolution of the spread input.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import bias_rows, matrix_layout, row_dtype
from vogn.linalg.layout import Layout
from vogn.linalg.patch_rows import PatchRows
from vogn.linalg.patches import Patches, grouped_gradients
from vogn.linalg.rows import Rows
from vogn.types import Shape


@register_layer(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
class TransposedConvolutionRule(LayerRule):
    """``nn.ConvTranspose1d/2d/3d`` with every stride, padding, output padding or size, dilation and grouping.

    With one group the block is ``(c_out, c_in * kernel (+ 1))``; with more, ``(groups, c_out / groups, ...)``. The
    weight ``(c_in, c_out / groups, *kernel)`` is transposed by the layout.
    """

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        assert isinstance(module, _ConvTransposeNd)
        groups, kernel = module.groups, module.kernel_size
        c_in, c_out = module.in_channels // groups, module.out_channels // groups
        lead = (groups,) if groups > 1 else ()
        return matrix_layout(
            names,
            shapes,
            (*lead, c_out, c_in * math.prod(kernel)),
            permute=(0, 2, 1, *range(3, 3 + len(kernel))),
            view=(groups, c_in, c_out, *kernel),
        )

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        assert isinstance(module, _ConvTransposeNd)
        (x,) = saved
        dims = len(module.kernel_size)
        if x.ndim == dims + 1:  # unbatched input
            x, grad_output = x.unsqueeze(0), grad_output.unsqueeze(1)
        dtype = row_dtype(x, grad_output)
        if "weight" not in attributes:
            return bias_rows(grouped_gradients(grad_output, module.groups, dtype))
        # the window of an output position meets the taps in reverse: in mirrored space they are in order
        mirrored = tuple(range(-dims, 0))
        patches = Patches(
            _spread(module, x.flip(mirrored), tuple(grad_output.shape[3:])).to(dtype),
            tuple(module.kernel_size),
            (1,) * dims,
            tuple(module.dilation),
            module.groups,
            bias="bias" in attributes,
        )
        return PatchRows(patches, grouped_gradients(grad_output.flip(mirrored), module.groups, dtype))


def _spread(module: _ConvTransposeNd, x: Tensor, outputs: Shape) -> Tensor:
    """The mirrored input with zeros between its elements: a kernel of stride 1 slides over it to mirrored outputs."""
    sizes = [(size - 1) * stride + 1 for size, stride in zip(x.shape[2:], module.stride, strict=True)]
    spread = x.new_zeros((*x.shape[:2], *sizes))
    places = (slice(None), slice(None), *(slice(None, None, stride) for stride in module.stride))
    spread[places] = x
    pads: list[int] = []
    for dim, (size, out) in enumerate(zip(sizes, outputs, strict=True)):
        reach = module.dilation[dim] * (module.kernel_size[dim] - 1)
        after = reach - int(module.padding[dim])
        pads = [out + reach - size - after, after, *pads]  # last dimension first; negative ones crop
    return F.pad(spread, pads)
