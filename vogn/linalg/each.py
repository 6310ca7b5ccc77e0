"""The same arithmetic on many tensors, in one call where they are alike."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def alike(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors share dtype and device."""
    return len({(tensor.dtype, tensor.device) for tensor in tensors}) == 1


def add_each(tensors: Sequence[Tensor], others: Sequence[Tensor], alphas: Sequence[float]) -> list[Tensor]:
    """``tensor + alpha * other``; a tensor itself where ``alpha`` is 0."""
    if len(set(alphas)) == 1 and alphas[0] and alike([*tensors, *others]):
        return list(torch._foreach_add(list(tensors), list(others), alpha=alphas[0]))
    return [
        tensor.add(other, alpha=alpha) if alpha else tensor
        for tensor, other, alpha in zip(tensors, others, alphas, strict=True)
    ]


def subtract_each(tensors: Sequence[Tensor], others: Sequence[Tensor], alphas: Sequence[float]) -> list[Tensor]:
    """``tensor - alpha * other``, in new memory, with the NaN of ``0 * inf``."""
    if len(set(alphas)) == 1 and alike([*tensors, *others]):
        return list(torch._foreach_sub(list(tensors), list(others), alpha=alphas[0]))
    return [tensor.sub(other, alpha=alpha) for tensor, other, alpha in zip(tensors, others, alphas, strict=True)]


def lerp_each(tensors: Sequence[Tensor], ends: Sequence[Tensor], weights: Sequence[float]) -> list[Tensor]:
    """``tensor + weight * (end - tensor)``."""
    if len(set(weights)) == 1 and alike([*tensors, *ends]):
        return list(torch._foreach_lerp(list(tensors), list(ends), weights[0]))
    return [tensor.lerp(end, weight) for tensor, end, weight in zip(tensors, ends, weights, strict=True)]


def scale_each(tensors: Sequence[Tensor], factor: Tensor) -> list[Tensor]:
    """``factor * tensor``, the factor a single number on the device of the first tensor."""
    if alike(tensors):
        return list(torch._foreach_mul(list(tensors), factor.to(tensors[0])))
    return [tensor * factor.to(tensor) for tensor in tensors]


def total_each(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A number for each tensor, which is finite only if the tensor is; still on the device."""
    return _largest_on_gpu(tensors) or [tensor.sum() for tensor in tensors]


def nonzero_each(tensors: Sequence[Tensor]) -> list[Tensor]:
    """A number for each tensor, 0 only if all its elements are; still on the device."""
    return _largest_on_gpu(tensors) or [tensor.any() for tensor in tensors]


def _largest_on_gpu(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The largest magnitudes, NaN where there is one; nothing where one call does not find them (fast)."""
    plain = all(x.is_cuda and x.is_floating_point() and x.numel() for x in tensors)
    return list(torch._foreach_norm(list(tensors), torch.inf)) if plain and alike(tensors) else []


def numbers(scalars: Sequence[Tensor]) -> list[float]:
    """The values of single numbers; waits for each device once."""
    if scalars and alike(scalars):
        return [float(value) for value in torch.stack(list(scalars)).tolist()]
    return [float(scalar) for scalar in scalars]
