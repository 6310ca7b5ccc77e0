"""Normalisation layers: one small block per channel, holding its scale and its shift.

The per-example gradient is already summed over positions: ``(sum_t g_nt xhat_nt, sum_t g_nt)``. Batch normalisation in
training mode couples the examples; its pair is taken by row (output row ``n`` with its own gradient), so the rows still
sum to the batch gradient.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import row_dtype, stack_layout, stack_rows
from vogn.linalg.layout import Layout
from vogn.linalg.rows import Rows
from vogn.types import Shape


class NormRule(LayerRule):
    """What all normalisations share; a family says how it normalises and where its channels are."""

    NORMALISES = True

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        return stack_layout(names, shapes)

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        dtype = row_dtype(saved[0], grad_output)
        g = self.positions(module, grad_output.to(dtype))  # (K, N, T, channels)
        parts = []
        for attribute in attributes:
            if attribute == "weight":
                parts.append(self.of_scale(module, g, saved[0].to(dtype).unsqueeze(0), saved[1:]))
            else:
                parts.append(g.sum(2))
        return stack_rows(torch.stack(parts, -1))

    def of_scale(self, module: nn.Module, g: Tensor, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """``sum_t g_nt xhat_nt``, ``(K, N, channels)``; ``g`` is of :meth:`positions`, see :meth:`normalise`."""
        return _inner(g, self.positions(module, self.normalise(module, x, statistics)))

    @abstractmethod
    def normalise(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """``xhat`` of ``x = (1, *input.shape)``; ``statistics`` is what ``saved`` kept beside the input."""

    @abstractmethod
    def positions(self, module: nn.Module, x: Tensor) -> Tensor:
        """``(K, *output.shape)`` as ``(K, N, T, channels)``."""


def _inner(g: Tensor, x: Tensor) -> Tensor:
    """``sum_t g_knt x_nt``: ``(K, N, T, channels)`` and ``(1, N, T, channels)`` to ``(K, N, channels)``.

    A product and a sum: einsum makes many tiny matrix products of them, which take five to ten times as long on a CPU.
    """
    return torch.stack([(column * x[0]).sum(1) for column in g])


def standardise(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """``(x - mean) / sqrt(var + eps)`` over ``dims``, with the biased variance."""
    centred, scale = _centred(x, dims, eps)
    return centred * scale


def _centred(x: Tensor, dims: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor]:
    """``x - mean`` and ``1 / sqrt(var + eps)``; in two passes, which are faster than ``torch.var_mean`` on a CPU."""
    centred = x - x.mean(dims, keepdim=True)
    return centred, (centred.square().mean(dims, keepdim=True) + eps).rsqrt()


def _centred_by(x: Tensor, statistics: tuple[Tensor, ...], eps: float, channel: int) -> tuple[Tensor, Tensor]:
    """The same with given ``(mean, variance)`` per channel; ``channel`` is the channels' dimension."""
    shape = [1] * x.ndim
    shape[channel] = -1
    mean, variance = (statistic.to(x.dtype).view(shape) for statistic in statistics)
    return x - mean, (variance + eps).rsqrt()


def _channels_second(x: Tensor) -> Tensor:
    """``(K, N, C, *space)`` as ``(K, N, T, C)``."""
    return x.flatten(3).transpose(2, 3) if x.ndim > 3 else x.unsqueeze(2)


@register_layer(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
class BatchNormRule(NormRule):
    """Batch normalisation: batch statistics in training, the running statistics of that forward in evaluation."""

    def saved(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """The input, and copies of the running statistics if forward used them."""
        assert isinstance(module, _BatchNorm)
        mean, variance = module.running_mean, module.running_var
        if module.training or mean is None or variance is None:
            return (inputs[0].detach(),)
        return (inputs[0].detach(), mean.detach().clone(), variance.detach().clone())

    def normalise(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`NormRule.normalise`."""
        centred, scale = self._parts(module, x, statistics)
        return centred * scale

    def of_scale(self, module: nn.Module, g: Tensor, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`NormRule.of_scale`; one pass over the numbers less."""
        centred, scale = self._parts(module, x, statistics)
        return _inner(g, self.positions(module, centred)) * scale.flatten()

    def _parts(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """``x - mean`` and ``1 / sqrt(var + eps)`` of every channel."""
        assert isinstance(module, _BatchNorm)
        if statistics:
            return _centred_by(x, statistics, module.eps, 2)
        return _centred(x, (0, 1, *range(3, x.ndim)), module.eps)

    def positions(self, module: nn.Module, x: Tensor) -> Tensor:
        """See :meth:`NormRule.positions`."""
        return _channels_second(x)


@register_layer(nn.SyncBatchNorm)
class SyncBatchNormRule(BatchNormRule):
    """Batch normalisation by the statistics of all processes; without a process group, :class:`BatchNormRule`.

    Forward does not leave its statistics behind, so each recorded forward sums three moments per channel over the
    processes once more. Rows are the local examples'.
    """

    def saved(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """The input, and the mean and variance that forward used unless they are those of the input."""
        assert isinstance(module, nn.SyncBatchNorm)
        kept = super().saved(module, inputs, output)
        if not (module.training and dist.is_available() and dist.is_initialized()):
            return kept
        group = module.process_group or dist.group.WORLD
        if dist.get_world_size(group) == 1:
            return kept
        x = kept[0].transpose(0, 1).flatten(1).double()
        moments = torch.stack([torch.full_like(x[:, 0], x.shape[1]), x.sum(1), x.square().sum(1)])
        dist.all_reduce(moments, group=group)
        mean, square = moments[1:] / moments[0]
        return (kept[0], mean, square - mean.square())


@register_layer(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
class InstanceNormRule(NormRule):
    """Instance normalisation with ``affine=True``; an unbatched input is one example."""

    def saved(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """The input, and copies of the running statistics if forward used them."""
        assert isinstance(module, _InstanceNorm)
        mean, variance = module.running_mean, module.running_var
        if module.training or not module.track_running_stats or mean is None or variance is None:
            return (inputs[0].detach(),)
        return (inputs[0].detach(), mean.detach().clone(), variance.detach().clone())

    def normalise(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`NormRule.normalise`."""
        assert isinstance(module, _InstanceNorm)
        channel = x.ndim - self._space(module) - 1
        if statistics:
            centred, scale = _centred_by(x, statistics, module.eps, channel)
            return centred * scale
        return standardise(x, tuple(range(channel + 1, x.ndim)), module.eps)

    def positions(self, module: nn.Module, x: Tensor) -> Tensor:
        """See :meth:`NormRule.positions`."""
        return _channels_second(x if x.ndim == self._space(module) + 3 else x.unsqueeze(1))

    @staticmethod
    def _space(module: nn.Module) -> int:
        """Number of spatial dimensions of the module's family."""
        families = {nn.InstanceNorm1d: 1, nn.InstanceNorm2d: 2, nn.InstanceNorm3d: 3}
        return next(families[kind] for kind in type(module).__mro__ if kind in families)


@register_layer(nn.GroupNorm)
class GroupNormRule(NormRule):
    """Group normalisation on ``(N, C, *space)``."""

    def normalise(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`NormRule.normalise`."""
        assert isinstance(module, nn.GroupNorm)
        return F.group_norm(x.squeeze(0), module.num_groups, eps=module.eps).unsqueeze(0)

    def positions(self, module: nn.Module, x: Tensor) -> Tensor:
        """See :meth:`NormRule.positions`."""
        return _channels_second(x)


def trailing_positions(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``(K, N, *middle, *shape)`` (or ``(K, *shape)``: one example) as ``(K, N, T, prod(shape))``."""
    if x.ndim == len(shape) + 1:
        x = x.unsqueeze(1)
    middle = x.shape[2 : x.ndim - len(shape)]
    return x.reshape(*x.shape[:2], math.prod(middle), math.prod(shape))


@register_layer(nn.LayerNorm)
class LayerNormRule(NormRule):
    """Layer normalisation over any ``normalized_shape``; every element is a channel."""

    def normalise(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`NormRule.normalise`."""
        assert isinstance(module, nn.LayerNorm)
        return F.layer_norm(x, module.normalized_shape, eps=module.eps)

    def positions(self, module: nn.Module, x: Tensor) -> Tensor:
        """See :meth:`NormRule.positions`."""
        assert isinstance(module, nn.LayerNorm)
        return trailing_positions(x, module.normalized_shape)


@register_layer(nn.RMSNorm)
class RMSNormRule(NormRule):
    """Root-mean-square normalisation; ``eps=None`` means the machine epsilon of the input's type, at least float32."""

    def saved(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """The input, and ``eps`` as forward saw it."""
        assert isinstance(module, nn.RMSNorm)
        eps = torch.finfo(row_dtype(inputs[0])).eps if module.eps is None else module.eps
        return (inputs[0].detach(), torch.tensor(eps, dtype=torch.float64))

    def normalise(self, module: nn.Module, x: Tensor, statistics: tuple[Tensor, ...]) -> Tensor:
        """See :meth:`NormRule.normalise`."""
        assert isinstance(module, nn.RMSNorm)
        dims = tuple(range(-len(module.normalized_shape), 0))
        return x * (x.square().mean(dims, keepdim=True) + float(statistics[0])).rsqrt()

    def positions(self, module: nn.Module, x: Tensor) -> Tensor:
        """See :meth:`NormRule.positions`."""
        assert isinstance(module, nn.RMSNorm)
        return trailing_positions(x, module.normalized_shape)
