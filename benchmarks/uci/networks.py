"""Many small networks side by side: one weight matrix for each."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import matrix_layout, with_ones
from vogn.linalg.layout import Layout
from vogn.linalg.rows import Rows
from vogn.types import Shape


class ManyLinear(nn.Module):
    """``y_r = s_r (W_r x_r + b_r)`` for ``r < R``: inputs ``(N, R, d_in)``, outputs ``(N, R, d_out)``.

    With a unit prior on ``W_r`` the scales ``s_r`` make one on ``s_r W_r`` of precision ``1 / s_r^2``: networks that
    are trained together may have different priors.

    Args:
        scales: ``s``, ``(R,)``.
        d_in, d_out: sizes.
    """

    scales: Tensor

    def __init__(self, scales: Tensor, d_in: int, d_out: int) -> None:
        super().__init__()
        count = len(scales)
        self.register_buffer("scales", scales.reshape(1, count, 1))
        bound = 1.0 / math.sqrt(d_in)
        start = torch.empty(count, d_out, d_in).uniform_(-bound, bound)
        self.weight = nn.Parameter(start / scales.reshape(-1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(count, d_out))

    def forward(self, x: Tensor) -> Tensor:
        """One product per network."""
        out = torch.baddbmm(self.bias.unsqueeze(1), x.transpose(0, 1), self.weight.mT)
        return out.transpose(0, 1) * self.scales


@register_layer(ManyLinear)
class ManyLinearRule(LayerRule):
    """A block of ``R`` sub-blocks."""

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        assert isinstance(module, ManyLinear)
        return matrix_layout(names, shapes, tuple(module.weight.shape))

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        assert isinstance(module, ManyLinear)
        a = saved[0].transpose(0, 1).unsqueeze(2)
        g = (grad_output * module.scales).permute(2, 0, 1, 3).unsqueeze(3)
        return Rows(with_ones(a) if "bias" in attributes else a, g)


class ManyNetworks(nn.Module):
    """``R`` networks with one hidden layer of ReLU units; inputs ``(N, R, d)``, outputs ``(N, R)``.

    Outputs are divided by the noise ``sigma_r``, as the targets are to be: under a unit noise the gradient of the
    squared error is that of each network's own likelihood.
    """

    noise: Tensor

    def __init__(self, d: int, prior_precisions: Tensor, hidden: int) -> None:
        super().__init__()
        scales = prior_precisions.rsqrt()
        self.first = ManyLinear(scales, d, hidden)
        self.second = ManyLinear(scales, hidden, 1)
        self.register_buffer("noise", torch.full((len(scales),), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs in units of the noise."""
        return self.second(self.first(x).relu()).squeeze(-1) / self.noise
