"""The forms of rows that several layer families share.

Pairs are at least float32, whatever autocast did to the layer: curvature arithmetic in half precision loses its
small eigenvalues.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vogn.linalg.layout import MatrixLayout, StackLayout
from vogn.linalg.rows import Rows
from vogn.types import Shape

ATTRIBUTES = ("weight", "bias")
"""Order of a layer's parameters in its layout."""


def row_dtype(*tensors: Tensor) -> torch.dtype:
    """The common floating type of ``tensors``, at least float32."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def matrix_layout(
    names: Mapping[str, str],
    shapes: Mapping[str, Shape],
    matrix: Shape,
    *,
    permute: tuple[int, ...] = (),
    view: Shape = (),
) -> MatrixLayout:
    """Layout of a weight seen as ``matrix = (*lead, d_out, d_in)`` with a bias column; either may be absent."""
    tracked = tuple(attribute for attribute in ATTRIBUTES if attribute in names)
    if "weight" not in names:
        matrix, permute, view = (*matrix[:-1], 0), (), ()
    tracked_shapes = tuple(tuple(shapes[a]) for a in tracked)
    return MatrixLayout(tuple(names[a] for a in tracked), tracked_shapes, matrix, permute, view)


def stack_layout(names: Mapping[str, str], shapes: Mapping[str, Shape]) -> StackLayout:
    """Layout of equally shaped parameters, one small block per element."""
    tracked = tuple(attribute for attribute in ATTRIBUTES if attribute in names)
    return StackLayout(tuple(names[a] for a in tracked), tuple(tuple(shapes[a]) for a in tracked))


def merge_middle(x: Tensor, start: int) -> Tensor:
    """Merge the middle dimensions from ``start`` to the last but one (possibly none) into one."""
    return x.unsqueeze(start) if x.ndim == start + 1 else x.flatten(start, -2)


def linear_rows(attributes: tuple[str, ...], x: Tensor, grad_output: Tensor) -> Rows:
    """Rows of ``y = W x + b``: ``x`` is ``(N, *middle, d_in)``, ``grad_output`` ``(K, N, *middle, d_out)``."""
    dtype = row_dtype(x, grad_output)
    g = merge_middle(grad_output.to(dtype), 2)
    if "weight" not in attributes:
        return bias_rows(g)
    a = merge_middle(x.to(dtype), 1)
    return Rows(a=with_ones(a) if "bias" in attributes else a, g=g)


def with_ones(a: Tensor) -> Tensor:
    """``a`` with a trailing input of ones: the bias as a weight."""
    return torch.cat([a, a.new_ones(()).expand(*a.shape[:-1], 1)], -1)


def bias_rows(g: Tensor) -> Rows:
    """Rows of a bias alone: ``g`` is ``(*lead, K, N, T, d_out)``; positions are summed, which is exact for a bias."""
    total = g.sum(-2, keepdim=True)
    return Rows(a=total.new_ones(()).expand(*g.shape[:-4], g.shape[-3], 1, 1), g=total)


def stack_rows(gradients: Tensor) -> Rows:
    """Rows of explicit per-example gradients ``(K, N, elements, parameters)`` in the packing of a stack layout."""
    g = gradients.permute(2, 0, 1, 3).unsqueeze(-2)
    return Rows(a=g.new_ones(()).expand(g.shape[0], g.shape[2], 1, 1), g=g)
