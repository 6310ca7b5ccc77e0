"""Intervals and quantiles of real predictions: do they hold what they promise, and how wide are they?"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vogn.metrics.inputs import check_level, positive, real_pair, real_samples


@dataclass(frozen=True)
class QuantileCalibration:
    """How often targets lie below predicted quantiles.

    Args:
        levels: probabilities of the quantiles, ``(L,)``.
        observed: share of targets at or below them, ``(L,)``; equal to ``levels`` if calibrated.
        count: number of targets.
    """

    levels: Tensor
    observed: Tensor
    count: int


def interval_coverage(low: Tensor, high: Tensor, targets: Tensor) -> Tensor:
    """Share of targets in ``[low, high]``, over all elements, in [0, 1].

    Args:
        low, high: ends, of one shape.
        targets: the same shape.

    Raises:
        ValueError: for different shapes, ``low > high``, non-finite values or an empty batch.
    """
    return interval_covered_elements(low, high, targets).mean()


def interval_covered_elements(low: Tensor, high: Tensor, targets: Tensor) -> Tensor:
    """1 where a target is in ``[low, high]``, else 0, in the shape of the targets; see :func:`interval_coverage`."""
    a, b, y = _ends(low, high, targets)
    return ((a <= y) & (y <= b)).to(y.dtype)


def interval_width(low: Tensor, high: Tensor) -> Tensor:
    """Mean of ``high - low`` over all elements, in the unit of the targets, >= 0.

    Args, Raises: see :func:`interval_coverage`.
    """
    a, b, _ = _ends(low, high, low)
    return (b - a).mean()


def interval_score(low: Tensor, high: Tensor, targets: Tensor, level: float = 0.9) -> Tensor:
    """Width plus ``2 / (1 - level)`` times the distance to targets outside, averaged, in the unit of the targets.

    It is proper: the central interval of probability ``level`` of the true distribution has the smallest expectation.

    Args:
        low, high, targets: see :func:`interval_coverage`.
        level: probability of the interval, in (0, 1).

    Raises:
        ValueError: see :func:`interval_coverage`; or if the level is out of range.

    Source: Gneiting and Raftery 2007, "Strictly proper scoring rules, prediction, and estimation", eq. 43.
    """
    return interval_score_elements(low, high, targets, level).mean()


def interval_score_elements(low: Tensor, high: Tensor, targets: Tensor, level: float) -> Tensor:
    """:func:`interval_score` of every element, in the shape of the targets."""
    check_level(level)
    a, b, y = _ends(low, high, targets)
    outside = (a - y).clamp_min(0) + (y - b).clamp_min(0)
    return b - a + 2 / (1 - level) * outside


def sharpness(variance: Tensor) -> Tensor:
    """Root of the mean variance over all elements, in the unit of the targets; smaller is sharper.

    Args:
        variance: predictive variance, noise included, > 0.

    Raises:
        ValueError: for a variance that is not positive, non-finite values or an empty batch.
    """
    v, _ = real_pair(variance, variance, name="variance")
    return positive(v).mean().sqrt()


def gaussian_pit(mean: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Probability integral transform: the probability of ``N(mean, variance)`` below each target.

    Args:
        mean, targets: of one shape.
        variance: the same shape, > 0, noise included.

    Returns:
        The same shape, in [0, 1]; uniform if the predictions are calibrated.

    Raises:
        ValueError: for different shapes, a variance that is not positive, non-finite values or an empty batch.

    Source: Dawid 1984, "Statistical theory: the prequential approach".
    """
    f, y = real_pair(mean, targets)
    f, v = real_pair(f, variance, name="variance")
    return _normal_cdf((y - f) / positive(v).sqrt())


def gaussian_mixture_pit(means: Tensor, variance: Tensor, targets: Tensor) -> Tensor:
    """Probability of an equal mixture of ``N(means[s], variance)`` below each target; see :func:`gaussian_pit`.

    Args:
        means: ``(S, ...)``, for example the outputs of ``S`` weight samples, ``Predictive.samples``.
        variance: of the noise, > 0; broadcast to ``means``.
        targets: ``(...)``.

    Returns:
        ``(...)``, in [0, 1].

    Raises:
        ValueError: see :func:`gaussian_pit`.
    """
    f, y = real_samples(means, targets)
    return _normal_cdf((y - f) / positive(variance.detach().to(f)).sqrt()).mean(0)


def quantile_calibration(pit: Tensor, levels: int = 99) -> QuantileCalibration:
    """Share of targets below the predicted quantiles of probability ``1 / (levels + 1), ..., levels / (levels + 1)``.

    Args:
        pit: probability integral transforms of the targets, any shape, in [0, 1].
        levels: number of quantiles, >= 1; 99 are the percentiles.

    Raises:
        ValueError: for values outside [0, 1], an empty batch, or ``levels < 1``.

    Source: Kuleshov, Fenner, Ermon 2018, "Accurate uncertainties for deep learning using calibrated regression".
    """
    counts = pit_counts(pit, levels)
    count = int(counts.sum())
    dtype = pit.dtype if pit.dtype == torch.float64 else torch.float32
    return QuantileCalibration(
        _levels(levels, dtype, pit.device), (counts.cumsum(0)[:-1].double() / count).to(pit.device, dtype), count
    )


def quantile_calibration_error(pit: Tensor, levels: int = 99) -> Tensor:
    """Mean of ``|observed - level|`` over the quantiles of :func:`quantile_calibration`, in [0, 0.5].

    Args, Raises: see :func:`quantile_calibration`.

    Source: Kuleshov, Fenner, Ermon 2018, with absolute values for squares, in the unit of a probability.
    """
    found = quantile_calibration(pit, levels)
    return (found.observed - found.levels).abs().mean()


def pit_counts(pit: Tensor, levels: int) -> Tensor:
    """Number of transforms up to each level and above the last, ``(levels + 1,)``, int64 on the CPU."""
    if levels < 1:
        raise ValueError(f"levels={levels}; at least one quantile is needed")
    if pit.numel() == 0:
        raise ValueError("pit holds no values: there is nothing to measure")
    u = pit.detach().reshape(-1).contiguous()
    u = u if u.dtype == torch.float64 else u.float()
    if not bool(((u >= 0) & (u <= 1)).all()):
        raise ValueError("pit holds values outside [0, 1] or NaN; give probabilities below the targets (gaussian_pit)")
    return torch.bincount(torch.bucketize(u, _levels(levels, u.dtype, u.device)), minlength=levels + 1).cpu()


def _levels(levels: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return (torch.arange(1, levels + 1, dtype=torch.float64) / (levels + 1)).to(device, dtype)


def _ends(low: Tensor, high: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    a, y = real_pair(low, targets, mean_name="low")
    b, _ = real_pair(high, targets, mean_name="high")
    dtype = torch.promote_types(a.dtype, b.dtype)
    if not bool((a <= b).all()):
        raise ValueError("some lower ends lie above the upper ends; give low first, then high")
    return a.to(dtype), b.to(dtype), y.to(dtype)


def _normal_cdf(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(-z / math.sqrt(2))
