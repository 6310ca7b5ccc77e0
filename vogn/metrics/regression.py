"""Errors and densities of real predictions."""

from __future__ import annotations

import math

from torch import Tensor

from vogn.metrics.inputs import positive, real_pair


def rmse(mean: Tensor, targets: Tensor) -> Tensor:
    """Root mean squared error over all elements, in the unit of the targets, >= 0.

    Args:
        mean: predictive mean.
        targets: the same shape.

    Raises:
        ValueError: for different shapes, non-finite values or an empty batch.
    """
    f, y = real_pair(mean, targets)
    return (f - y).square().mean().sqrt()


def gaussian_nll(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Mean over the examples of ``-log N(y | mean, diag(variance))`` in nats; a row of ``(N, ..., K)`` is one example.

    Args:
        mean: predictive mean, ``(N,)`` or ``(N, ..., K)``.
        variance: predictive variance including the observation noise, the same shape, > 0.
        targets: the same shape.

    Raises:
        ValueError: for different shapes, a variance that is not positive, non-finite values or an empty batch.
    """
    return gaussian_nll_examples(mean, variance, targets).mean()


def gaussian_nll_examples(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """:func:`gaussian_nll` of every example, ``(N,)`` or ``(N, ...)``."""
    f, y = real_pair(mean, targets)
    f, v = real_pair(f, variance, name="variance")
    positive(v)
    elements = 0.5 * ((y - f).square() / v + v.log() + math.log(2 * math.pi))
    return elements if elements.ndim == 1 else elements.sum(-1)
