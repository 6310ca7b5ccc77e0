"""The continuous ranked probability score: an absolute error for distributions, in the unit of the targets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vogn.metrics.inputs import positive, real_pair, real_samples


def gaussian_crps(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Mean over all elements of the score of ``N(mean, variance)``, in the unit of the targets, >= 0.

    Args:
        mean: any shape.
        variance: the same shape, > 0, noise included.
        targets: the same shape.

    Raises:
        ValueError: for different shapes, a variance that is not positive, non-finite values or an empty batch.

    Example: the score of a standard normal distribution at its mean, ``(sqrt(2) - 1) / sqrt(pi)``.
        >>> import torch
        >>> from vogn.metrics import gaussian_crps
        >>> zero = torch.zeros(1)
        >>> round(float(gaussian_crps(zero, zero + 1, zero)), 4)
        0.2337

    Source: Gneiting, Raftery, Westveld, Goldman 2005, "Calibrated probabilistic forecasting using ensemble model output
    statistics and minimum CRPS estimation", eq. 5.
    """
    return gaussian_crps_elements(mean, variance, targets).mean()


def gaussian_crps_elements(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """:func:`gaussian_crps` of every element, in the shape of the targets."""
    f, y = real_pair(mean, targets)
    f, v = real_pair(f, variance, name="variance")
    positive(v)
    return _expected_distance(y - f, v) - (v / math.pi).sqrt()


def gaussian_mixture_crps(means: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Mean over all elements of the score of an equal mixture of ``N(means[s], variance)``, in the unit of the targets.

    It takes ``S^2`` operations an element, in memory for ``S``.

    Args:
        means: ``(S, ...)``, for example the outputs of ``S`` weight samples, ``Predictive.samples``.
        variance: of the noise, > 0; broadcast to ``means`` (a scalar, the shape of the targets, or one per component).
        targets: ``(...)``.

    Raises:
        ValueError: see :func:`gaussian_crps`.

    Source: Grimit, Gneiting, Berrocal, Johnson 2006, "The continuous ranked probability score for circular variables
    and its application to mesoscale forecast ensemble verification".
    """
    return gaussian_mixture_crps_elements(means, variance, targets).mean()


def gaussian_mixture_crps_elements(means: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """:func:`gaussian_mixture_crps` of every element, in the shape of the targets."""
    f, y = real_samples(means, targets)
    v = positive(variance.detach().to(f)).expand_as(f)
    distance = _expected_distance(y - f, v).mean(0)
    spread = torch.zeros_like(y)
    for s in range(len(f)):
        spread += _expected_distance(f - f[s], v + v[s]).mean(0) / len(f)
    return distance - 0.5 * spread


def sample_crps(samples: Tensor, targets: Tensor, *, fair: bool = False) -> Tensor:
    """Mean over all elements of ``mean_s |x_s - y| - 1/2 mean_st |x_s - x_t|``, in the unit of the targets.

    Args:
        samples: ``(S, ...)``, draws of the *observation*, noise included; outputs of weight samples are too narrow.
        targets: ``(...)``.
        fair: average ``|x_s - x_t|`` over pairs of different draws, which is unbiased for the distribution that they
            were drawn from; needs ``S >= 2``. Otherwise it is the score of the ``S`` points themselves.

    Raises:
        ValueError: for wrong shapes, non-finite values, an empty batch, or one fair sample.

    Source: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", eq. 21; Ferro 2014,
    "Fair scores for ensemble forecasts".
    """
    x, y = real_samples(samples, targets)
    count = len(x)
    if fair and count < 2:
        raise ValueError("the fair score of one sample does not exist: draw at least two, or use fair=False")
    ordered = x.sort(0).values
    # sum over pairs of |x_s - x_t| = 2 sum_i (2 i - S - 1) x_(i), i = 1 ... S
    rank = 2 * torch.arange(1, count + 1, dtype=x.dtype, device=x.device) - count - 1
    pairs = 2 * torch.tensordot(rank, ordered, dims=([0], [0]))
    spread = pairs / (count * (count - 1) if fair else count**2)
    return ((x - y).abs().mean(0) - 0.5 * spread).mean()


def _expected_distance(offset: Tensor, variance: Tensor) -> Tensor:
    """``E |offset + sqrt(variance) eps|``."""
    scale = variance.sqrt()
    z = offset / scale
    density = torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)
    return 2 * scale * density + offset * torch.erf(z / math.sqrt(2))
