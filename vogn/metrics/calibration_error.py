"""Calibration errors beside the plain one: of every class, with equal-mass bins, without the bias of small samples."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from vogn.metrics.binning import average_ties, check_bins, class_sums, equal_mass, sum_by_bin, top_label_sums
from vogn.metrics.inputs import class_rows


def classwise_ece(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Tensor:
    """Mean over the classes of the calibration error of each class's probability, in [0, 1].

    ``1 / C sum_c sum_b count_cb / N |share of label c - mean p_c|`` over equal-width bins of all ``N`` probabilities of
    class ``c``. Most probabilities of many classes are near 0 and well calibrated there, so it shrinks as ``1 / C``.

    Args:
        probabilities, targets: see :func:`vogn.metrics.accuracy`; the 0/1 form counts as two classes.
        bins: number of bins, >= 1.

    Raises:
        ValueError: see :func:`vogn.metrics.accuracy`; or if ``bins < 1``.

    Source: Kull et al. 2019, "Beyond temperature scaling".
    """
    check_bins(bins)
    p, y = class_rows(probabilities, targets)
    return class_sums(p, y, bins).absolute_gap().mean().to(p.dtype)


def adaptive_ece(probabilities: Tensor, targets: Tensor, bins: int = 15, *, classwise: bool = False) -> Tensor:
    """Expected calibration error with bins of equal mass, in [0, 1]; at most ``N`` bins.

    Equal probabilities on both sides of a border are shared out as in the mean over random orders.

    Args:
        probabilities, targets: see :func:`vogn.metrics.accuracy`.
        bins: number of bins, >= 1.
        classwise: ``False``: of the predicted class. ``True``: mean over the classes, as in :func:`classwise_ece`.

    Raises:
        ValueError: see :func:`vogn.metrics.accuracy`; or if ``bins < 1``.

    Source: Nguyen and O'Connor 2015, "Posterior calibration and exploratory analysis for natural language processing
    models"; Nixon et al. 2019, "Measuring calibration in deep learning", for classes.
    """
    check_bins(bins)
    p, y = class_rows(probabilities, targets)
    bins = min(bins, len(y))
    if classwise:
        columns = [(p[:, c], y == c) for c in range(p.shape[-1])]
    else:
        confidence, predicted = p.max(-1)
        columns = [(confidence, predicted == y)]
    errors = [_equal_mass_gap(forecast, outcome.to(p.dtype), bins) for forecast, outcome in columns]
    return torch.stack(errors).mean().to(p.dtype)


def debiased_ece(
    probabilities: Tensor,
    targets: Tensor,
    bins: int = 15,
    *,
    binning: Literal["width", "mass"] = "width",
    squared: bool = False,
) -> Tensor:
    """Root of the mean squared calibration error of the predicted class, without the bias of finite bins, in [0, 1].

    Even a calibrated model has a plain error above 0, because the accuracy of a bin is that of few examples. Here
    ``sum_b count_b / N ((accuracy_b - confidence_b)^2 - accuracy_b (1 - accuracy_b) / (count_b - 1))``; bins of a
    single prediction are left out. It is a root mean square, so it is no smaller than an expected error without bias.

    Args:
        probabilities, targets: see :func:`vogn.metrics.accuracy`.
        bins: number of bins, >= 1.
        binning: ``"width"``: equal widths, as in :func:`vogn.metrics.ece`. ``"mass"``: equal numbers.
        squared: return the sum itself, which is unbiased for the binned error and may be negative; its root is 0 then.

    Raises:
        ValueError: see :func:`vogn.metrics.accuracy`; if ``bins < 1``; for an unknown binning.

    Source: Kumar, Liang, Ma 2019, "Verified uncertainty calibration".
    """
    check_bins(bins)
    p, y = class_rows(probabilities, targets)
    if binning == "width":
        sums = top_label_sums(p, y, bins)
    elif binning == "mass":
        confidence, predicted = p.max(-1)
        correct = average_ties(confidence, (predicted == y).to(p.dtype))
        bins = min(bins, len(y))
        sums = sum_by_bin(confidence, correct, equal_mass(confidence, bins), bins)
    else:
        raise ValueError(f"binning={binning!r}; allowed are 'width' and 'mass'")
    error = sums.squared_gap(debiased=True).to(p.dtype)
    return error if squared else error.clamp_min(0).sqrt()


def _equal_mass_gap(forecasts: Tensor, outcomes: Tensor, bins: int) -> Tensor:
    shared = average_ties(forecasts, outcomes)
    return sum_by_bin(forecasts, shared, equal_mass(forecasts, bins), bins).absolute_gap()
