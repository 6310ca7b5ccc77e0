"""The second moment of a convolution's patches, from correlations of its input with itself.

With stride 1, taps ``k`` and ``l`` of the kernel see the input at ``u = t + k`` and at ``u + (l - k)``, so that their
part of ``sum_t patch_t patch_t^T`` is the correlation of the input with itself at the shift ``l - k``, summed over the
positions ``u`` that tap ``k`` reaches: all but a few at the border. What every tap reaches is summed once for all pairs
with the same shift, by a weight gradient, which writes no patch down; the border is added position by position. For a
kernel of 3 x 3 these are 15 shifts instead of the 45 products in the half of a symmetric matrix.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from vogn.linalg.patches import WEIGHT_GRADIENTS, Patches, patch_matrix, sliding_patches
from vogn.types import Shape

WORTH = 10_000_000
"""Multiply-adds of a product with written patches that take as long as one range of positions (AMD EPYC, a thread)."""

PIECE = 8192
"""Positions in one weight gradient: they add up one after the other, with an error that grows with their number. In
pieces of this size the result is as near to the exact one as a product with written patches, and takes no longer."""

Range = tuple[int, int]


def ranges_of(patches: Patches) -> list[list[Range]]:
    """The positions of the padded input in every dimension, cut by which taps reach them.

    Returns:
        For each dimension, ``(start, stop)`` of what every tap reaches, and every position of the border on its own;
        positions that are zeros are left out. Nothing if some dimension has no position that every tap reaches.
    """
    found = []
    zeros = patches.zeros or ((0, 0),) * len(patches.kernel)
    for size, out, (before, after) in zip(patches.x.shape[2:], patches.out, zeros, strict=True):
        reach = size - out
        if out <= reach:
            return []
        first = [(row, row + 1) for row in range(min(before, reach), reach)]
        last = [(row, row + 1) for row in range(out, size - min(after, reach))]
        found.append([*first, (reach, out), *last])
    return found


def pays(patches: Patches) -> bool:
    """Whether :func:`second_moment_of_patches` can be had and is faster than a product with written patches.

    Weight gradients in double precision, and those of small layers, are not.
    """
    if patches.is_point or any(step != 1 for step in patches.stride):
        return False
    if patches.x.dtype != torch.float32 or patches.x.device.type != "cpu":
        return False
    ranges = ranges_of(patches)
    cost = patches.count * math.prod(patches.out) * patches.groups * patches.d_in**2
    return bool(ranges) and cost >= WORTH * math.prod(map(len, ranges))


def second_moment_of_patches(patches: Patches) -> Tensor:
    """``sum_nt patch[n, t] patch[n, t]^T`` of a convolution with stride 1 that has :func:`ranges_of`,
    ``(*lead, d_in, d_in)``, symmetric."""
    kernel, groups, channels = patches.kernel, patches.groups, patches.x.shape[1]
    width, taps = channels // groups, list(itertools.product(*map(range, kernel)))
    sums = {k: patches.x.new_zeros((kernel[0] - k[0], *kernel[1:], channels, width)) for k in taps}  # with l_0 >= k_0
    for region in itertools.product(*ranges_of(patches)):
        found, least = _correlation(patches, region)
        for k, shifts, partners in _pairs(patches, region, least, found.shape[:-2]):
            sums[k][partners] += found[shifts]
    size = width * len(taps)
    half = patches.x.new_zeros((groups, patches.d_in, patches.d_in))
    blocks = half[:, :size, :size].unflatten(2, (width, *kernel)).unflatten(1, (width, *kernel))
    for k, found in sums.items():
        found[0] *= 0.5  # l_0 = k_0: both halves have it
        there = (slice(None), slice(None), *k, slice(None), slice(k[0], None))
        blocks[there].copy_(found.unflatten(-2, (groups, width)).movedim((-3, -2, -1), (0, 1, 2)))
    if patches.bias:
        total = sliding_patches(patches.x.sum(0, keepdim=True), kernel, patches.stride, patches.dilation)
        half[:, :size, size] = total.sum(tuple(range(2, 2 + len(kernel)))).view(groups, size)
        half[:, size, size] = 0.5 * patches.count * math.prod(patches.out)
    moment = half + half.mT
    return moment if groups > 1 else moment.squeeze(0)


def _correlation(patches: Patches, region: Sequence[Range]) -> tuple[Tensor, list[int]]:
    """``sum_nu x[n, c, u] x[n, d, u + shift]`` over a region and over channels ``d`` of the same group,
    ``(*shifts, c_in, c_in / groups)``, and the least shift in each dimension, in taps.

    Shifts are those between two taps, in the first dimension upwards only, as far as they stay inside the input.
    """
    x, groups, width = patches.x, patches.groups, patches.x.shape[1] // patches.groups
    least, counts, reached = [], [], [slice(None), slice(None)]
    geometry = zip(region, x.shape[2:], patches.kernel, patches.dilation, strict=True)
    for dim, ((start, stop), size, taps, spread) in enumerate(geometry):
        down = 0 if dim == 0 else min(taps - 1, start // spread)
        up = min(taps - 1, (size - stop) // spread)
        least.append(-down)
        counts.append(down + up + 1)
        reached.append(slice(start - spread * down, stop + spread * up))
    here = [slice(None), slice(None), *(slice(start, stop) for start, stop in region)]
    shifted, own = x[tuple(reached)], x[tuple(here)]
    once = (1,) * len(counts)
    if any(stop - start == 1 for start, stop in region):  # few positions
        views = (own, once), (shifted, counts)
        a, b = (
            patch_matrix(sliding_patches(view, sizes, once, patches.dilation), groups, False, x.dtype).flatten(-3, -2)
            for view, sizes in views
        )
        found = (a.mT @ b).view(groups * width, width, *counts)
    else:
        backward, sizes = WEIGHT_GRADIENTS[len(counts)], (groups * width, width, *counts)
        examples = max(1, PIECE // math.prod(own.shape[2:]))
        found = x.new_zeros(sizes)
        for a, b in zip(shifted.split(examples), own.split(examples), strict=True):
            found += backward(a, sizes, b, 1, 0, patches.dilation, groups)
    return found.movedim((0, 1), (-2, -1)).contiguous(), least


def _pairs(
    patches: Patches, region: Sequence[Range], least: Sequence[int], counts: Shape
) -> Iterator[tuple[tuple[int, ...], tuple[slice, ...], tuple[slice, ...]]]:
    """The taps ``k`` that reach a region; for each the shifts that lead to taps ``l``, and these.

    The first dimension of ``l`` counts from ``k``'s on.

    Args:
        patches: the geometry.
        region: positions, see :func:`ranges_of`.
        least, counts: of the shifts that :func:`_correlation` has found there.
    """
    reaching = [
        range(max(0, -((out - stop) // spread)), min(taps - 1, start // spread) + 1)
        for out, taps, spread, (start, stop) in zip(
            patches.out, patches.kernel, patches.dilation, region, strict=True
        )
    ]
    for k in itertools.product(*reaching):
        shifts, partners = [], []
        for dim, (tap, taps, low, count) in enumerate(zip(k, patches.kernel, least, counts, strict=True)):
            first, last = max(low, -tap), min(low + count - 1, taps - 1 - tap)
            shifts.append(slice(first - low, last - low + 1))
            begin = first if dim == 0 else tap + first
            partners.append(slice(begin, begin + last - first + 1))
        yield k, tuple(shifts), tuple(partners)
