"""What the kernel of a convolution sees: as a matrix, and in products that never write it down."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad

from vogn.kernels.dispatch import fitting
from vogn.kernels.operations import MOST_POSITIONS
from vogn.types import Shape

_CONVOLUTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
WEIGHT_GRADIENTS: dict[int, Callable[..., Tensor]] = {
    1: grad.conv1d_weight,
    2: grad.conv2d_weight,
    3: grad.conv3d_weight,
}
"""By the number of dimensions."""


@dataclass(frozen=True)
class Patches:
    """The input of a convolution as one row per output position, kept as the input itself.

    Args:
        x: padded input, ``(N, c_in, *space)``.
        kernel, stride, dilation: of each dimension.
        groups: of channels; more than one are leading dimensions ``lead = (groups,)``.
        bias: whether a one follows every patch.
        zeros: for each dimension how many of its first and of its last positions are known to be zero; empty if nothing
            is known.
    """

    x: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    zeros: tuple[tuple[int, int], ...] = ()

    @property
    def count(self) -> int:
        """Number of examples ``N``."""
        return self.x.shape[0]

    @property
    def lead(self) -> Shape:
        """``(groups,)``, or nothing for one group."""
        return (self.groups,) if self.groups > 1 else ()

    @property
    def out(self) -> Shape:
        """Output positions in each dimension; their product is ``T``."""
        sizes = zip(self.x.shape[2:], self.kernel, self.stride, self.dilation, strict=True)
        return tuple((space - d * (k - 1) - 1) // s + 1 for space, k, s, d in sizes)

    @property
    def is_point(self) -> bool:
        """Whether the kernel sees one position at a time."""
        return math.prod(self.kernel) == 1

    @property
    def d_in(self) -> int:
        """Length of a row, bias included."""
        return self.x.shape[1] // self.groups * math.prod(self.kernel) + int(self.bias)

    def part(self, start: int, stop: int) -> Patches:
        """The patches of some examples."""
        return replace(self, x=self.x[start:stop])

    def channels(self, start: int, stop: int) -> Patches:
        """The part of every patch that some input channels of each group are; the one only behind the last."""
        of_groups = self.x.unflatten(1, (self.groups, -1))
        last = stop == of_groups.shape[2]
        x = of_groups[:, :, start:stop].flatten(1, 2)
        return replace(self, x=x, bias=self.bias and last)

    def matrix(self) -> Tensor:
        """All of them, ``(*lead, N, T, d_in)``; a view of the input where the kernel is a point."""
        if self.is_point and not self.bias and self.groups == 1 and all(step == 1 for step in self.stride):
            return self.x.flatten(2).mT
        return patch_matrix(
            sliding_patches(self.x, self.kernel, self.stride, self.dilation), self.groups, self.bias, self.x.dtype
        )

    def factor_in_place(self) -> Tensor | None:
        """``matrix^T matrix`` over all examples and positions by Triton's kernel, which reads the patches where they
        are, ``(d_in, d_in)``; ``None`` where it does not run: groups and three dimensions are not its own."""
        if self.groups > 1 or len(self.kernel) > 2:
            return None
        positions = self.count * math.prod(self.out)
        kernel = fitting("patch_factor", self.x, limit="too many positions" if positions > MOST_POSITIONS else "")
        if kernel is None:
            return None
        flat = len(self.kernel) == 1  # an image of one row
        one: tuple[int, ...] = (1,) if flat else ()
        factor: Tensor = kernel(
            self.x.unsqueeze(2) if flat else self.x,
            kernel_size=one + self.kernel,
            stride=one + self.stride,
            padding=(0, 0),
            dilation=one + self.dilation,
            out_size=one + self.out,
            ones=self.bias,
        )
        return factor.to(self.x.dtype)

    def example_gradients(self, g: Tensor) -> Tensor:
        """``sum_t g[k, n, t] patch[n, t]^T`` of every example: a weight gradient in which each is a group of its own.

        Args:
            g: ``(*lead, K, N, T, d_out)``.

        Returns:
            ``(*lead, K, N, d_out, d_in)``.
        """
        *_, columns, count, _, d_out = g.shape
        x = self.x.reshape(1, -1, *self.x.shape[2:])
        found = [self._weight_gradient(x, maps.reshape(1, -1, *self.out), count) for maps in self._maps(g)]
        rows = torch.stack(found).reshape(columns, count, self.groups, d_out, -1).movedim(2, 0)
        if self.bias:
            rows = torch.cat([rows, g.sum(-2).reshape(self.groups, columns, count, d_out, 1)], -1)
        return rows if self.groups > 1 else rows.squeeze(0)

    def summed_gradient(self, g: Tensor) -> Tensor:
        """``sum_nt g[n, t] patch[n, t]^T``, ``(*lead, d_out, d_in)``, for ``g`` of ``(*lead, N, T, d_out)``."""
        (maps,) = self._maps(g.unsqueeze(-4))
        total = self._weight_gradient(self.x, maps, 1).reshape(self.groups, g.shape[-1], -1)
        if self.bias:
            total = torch.cat([total, g.sum((-3, -2)).reshape(self.groups, -1, 1)], -1)
        return total if self.groups > 1 else total.squeeze(0)

    def product(self, v: Tensor) -> Tensor:
        """``v patch[n, t]``, ``(*lead, N, T, d_out)``, for a block vector ``(*lead, d_out, d_in)``."""
        d_out = v.shape[-2]
        kernel = v[..., : v.shape[-1] - int(self.bias)].reshape(self.groups * d_out, -1, *self.kernel)
        bias = v[..., -1].flatten() if self.bias else None
        convolve = _CONVOLUTIONS[len(self.kernel)]
        maps = convolve(self.x, kernel, bias, self.stride, 0, self.dilation, self.groups)
        return grouped_gradients(maps.unsqueeze(0), self.groups, maps.dtype).squeeze(-4)

    def _maps(self, g: Tensor) -> Tensor:
        """``(*lead, K, N, T, d_out)`` as it comes from autograd, ``(K, N, c_out, *out)``."""
        g = g if self.groups > 1 else g.unsqueeze(0)
        return g.permute(1, 2, 0, 4, 3).flatten(2, 3).unflatten(-1, self.out)

    def _weight_gradient(self, x: Tensor, maps: Tensor, copies: int) -> Tensor:
        """Of a convolution whose groups are ``copies`` of the groups."""
        size = (maps.shape[1], self.x.shape[1] // self.groups, *self.kernel)
        backward = WEIGHT_GRADIENTS[len(self.kernel)]
        return backward(x, size, maps, self.stride, 0, self.dilation, copies * self.groups)


def patch_matrix(patches: Tensor, groups: int, bias: bool, dtype: torch.dtype) -> Tensor:
    """Patches ``(N, c_in, *out, *kernel)`` as ``(*lead, N, T, c_in / groups * kernel (+ 1))``, written at most once.

    In memory the positions of all examples come last: they are copied in long runs, and products over them read them
    where they are.
    """
    dims = (patches.ndim - 2) // 2
    patches = patches.unflatten(1, (groups, -1))
    patches = patches.permute(1, 2, *range(3 + dims, 3 + 2 * dims), 0, *range(3, 3 + dims))
    sizes, count, positions = patches.shape[1 : 2 + dims], patches.shape[2 + dims], patches.shape[3 + dims :]
    d_in = math.prod(sizes)
    a = torch.empty((groups, d_in + int(bias), count, math.prod(positions)), dtype=dtype, device=patches.device)
    a[:, :d_in].unflatten(-1, positions).unflatten(1, sizes).copy_(patches)
    a[:, d_in:] = 1
    a = a.permute(0, 2, 3, 1)
    return a if groups > 1 else a.squeeze(0)


def grouped_gradients(grad_output: Tensor, groups: int, dtype: torch.dtype) -> Tensor:
    """``(K, N, c_out, *out)`` as ``(*lead, K, N, T, c_out / groups)``."""
    g = grad_output.to(dtype).flatten(3).unflatten(2, (groups, -1)).permute(2, 0, 1, 4, 3)
    return g if groups > 1 else g.squeeze(0)


def sliding_patches(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Patches of ``(N, c, *space)`` as a strided view ``(N, c, *out, *kernel)``."""
    for dim, (size, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + dim, spread * (size - 1) + 1, step)[..., ::spread]
    return x
