"""Filter response normalisation with its thresholded linear unit, and its layer rule.

Unlike batch normalisation it does not couple the examples of a batch, so per-example gradients exist.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.layers.base import LayerRule, register_layer
from vogn.linalg.layout import Layout, StackLayout
from vogn.linalg.rows import Rows
from vogn.types import Shape

ATTRIBUTES = ("gamma", "beta", "tau")


class FilterResponseNorm2d(nn.Module):
    """``max(gamma * x / sqrt(mean_hw(x^2) + eps) + beta, tau)`` per channel; replaces a norm and its ReLU.

    Inputs ``(N, C, H, W)``, outputs the same shape and dtype; arithmetic in float32 at least.

    Args:
        channels: number of channels ``C``, >= 1.
        eps: added to the mean square, > 0. At ``H = W = 1`` the output is nearly the sign of the input unless ``eps``
            is comparable to ``x^2``.
        threshold: with ``False`` there is no ``tau``: the plain affine normalisation, for the end of a residual branch.

    Raises:
        ValueError: for an illegal argument, or an input that is not ``(N, C, H, W)``.

    Source: Singh, Krishnan 2020, "Filter response normalization layer". At first gamma = 1, beta = tau = 0.
    """

    def __init__(self, channels: int, eps: float = 1e-6, threshold: bool = True) -> None:
        super().__init__()
        if channels < 1 or not eps > 0:
            raise ValueError(f"channels={channels}, eps={eps}; both must be positive")
        self.channels, self.eps = channels, eps
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.tau: nn.Parameter | None
        if threshold:
            self.tau = nn.Parameter(torch.zeros(channels))
        else:
            self.register_parameter("tau", None)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise, scale, shift and threshold."""
        if x.ndim != 4 or x.shape[1] != self.channels:
            raise ValueError(f"input has shape {tuple(x.shape)}; (N, {self.channels}, H, W) is needed")
        z = _affine(_normalise(x, self.eps), self.gamma, self.beta)
        if self.tau is not None:
            z = torch.maximum(z, self.tau[:, None, None])
        return z.to(x.dtype)

    def extra_repr(self) -> str:
        """Arguments for ``repr``."""
        return f"{self.channels}, eps={self.eps:g}, threshold={self.tau is not None}"


@register_layer(FilterResponseNorm2d)
class FilterResponseNormRule(LayerRule):
    """One block per channel: ``(C, number of tracked parameters, 1)``, per-example gradients as rows with ``a = 1``."""

    NORMALISES = True

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        tracked = [attribute for attribute in ATTRIBUTES if attribute in names]
        return StackLayout(tuple(names[key] for key in tracked), tuple(shapes[key] for key in tracked))

    def saved(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """The input and, because they decide which positions were thresholded, copies of the parameters."""
        assert isinstance(module, FilterResponseNorm2d)
        parameters = [p for p in (module.gamma, module.beta, module.tau) if p is not None]
        return (inputs[0].detach(), *(p.detach().clone() for p in parameters))

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`. At a tie with ``tau`` the gradient is shared half and half, as autograd does."""
        assert isinstance(module, FilterResponseNorm2d)
        x, gamma, beta, *tau = saved
        x_hat = _normalise(x, module.eps)
        g = grad_output.to(x_hat.dtype)
        parts: dict[str, Tensor] = {}
        passed = g
        if tau:
            z, bound = _affine(x_hat, gamma, beta), tau[0][:, None, None]
            share = (z > bound).to(g.dtype) + 0.5 * (z == bound).to(g.dtype)
            passed = g * share
            parts["tau"] = (g - passed).sum((-2, -1))
        parts["gamma"] = (passed * x_hat).sum((-2, -1))
        parts["beta"] = passed.sum((-2, -1))
        stacked = torch.stack([parts[attribute] for attribute in attributes], -1)  # (K, N, C, parameters)
        rows = stacked.permute(2, 0, 1, 3).unsqueeze(-2)
        a = rows.new_ones(1, 1, 1, 1).expand(rows.shape[0], rows.shape[2], 1, 1)
        return Rows(a, rows)


def _normalise(x: Tensor, eps: float) -> Tensor:
    x = x if x.dtype == torch.float64 else x.float()
    return x * torch.rsqrt(x.square().mean((-2, -1), keepdim=True) + eps)


def _affine(x_hat: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    return gamma[:, None, None] * x_hat + beta[:, None, None]
