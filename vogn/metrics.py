"""Quality of predictions: accuracy, proper scores and calibration of probabilities; errors of regressions.

Classification metrics take probabilities, never logits, in one of two forms: ``(N, ..., C)`` with integer targets
``(N, ...)``, or the probability of label 1, of any shape, with 0/1 targets of the same shape. Every value is a scalar
tensor in float32 at least.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reliability:
    """The points of a reliability diagram, one per confidence bin.

    Args:
        edges: bin edges, ``(bins + 1,)``, from 0 to 1; bin ``b`` is ``(edges[b], edges[b + 1]]``, the first one
            holds 0 too.
        confidence: mean probability of the predicted class, ``(bins,)``; NaN for an empty bin.
        accuracy: fraction of correct predictions, ``(bins,)``; NaN for an empty bin.
        count: number of predictions, ``(bins,)``, int64.
    """

    edges: Tensor
    confidence: Tensor
    accuracy: Tensor
    count: Tensor


def accuracy(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Fraction of predictions whose most probable class is the target, in [0, 1]; ties go to the lower class.

    Args:
        probabilities: ``(N, ..., C)``, or the probability of label 1.
        targets: integers ``(N, ...)``, or 0/1 of the shape of ``probabilities``.

    Raises:
        ValueError: for probabilities outside [0, 1] or not summing to 1, wrong shapes or labels, an empty batch.
    """
    p, y = _rows(probabilities, targets)
    return (p.argmax(-1) == y).to(p.dtype).mean()


def nll(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-log p_y`` in nats, >= 0; finite also at ``p_y = 0`` (raised to the smallest normal number).

    Args, Raises: see :func:`accuracy`.
    """
    p, y = _rows(probabilities, targets)
    return -p.gather(-1, y.unsqueeze(-1)).clamp_min(torch.finfo(p.dtype).tiny).log().mean()


def brier(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Brier score: mean of ``sum_c (p_c - [c = y])^2`` in [0, 2]; of ``(p - y)^2`` in [0, 1] for the 0/1 form.

    Args, Raises: see :func:`accuracy`.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    p, y = _rows(probabilities, targets)
    error = p - torch.nn.functional.one_hot(y, p.shape[-1]).to(p.dtype)
    score = error.square().sum(-1).mean()
    return score / 2 if probabilities.shape == targets.shape else score


def reliability(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Reliability:
    """Confidence and accuracy of the predicted class in equal-width bins.

    Args:
        probabilities, targets: see :func:`accuracy`.
        bins: number of bins, >= 1.

    Raises:
        ValueError: see :func:`accuracy`; or if ``bins < 1``.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}; at least one bin is needed")
    p, y = _rows(probabilities, targets)
    confidence, predicted = p.max(-1)
    edges = torch.linspace(0, 1, bins + 1, dtype=p.dtype, device=p.device)
    index = torch.bucketize(confidence, edges[1:-1])
    count = torch.bincount(index, minlength=bins)
    zeros = torch.zeros(bins, dtype=p.dtype, device=p.device)
    correct = zeros.index_add(0, index, (predicted == y).to(p.dtype))
    total = zeros.index_add(0, index, confidence)
    return Reliability(edges, total / count, correct / count, count)


def ece(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Tensor:
    """Expected calibration error of the predicted class, in [0, 1]: ``sum_b count_b / N |accuracy_b - confidence_b|``.

    Args, Raises: see :func:`reliability`.

    Source: Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks", eq. 3.
    """
    points = reliability(probabilities, targets, bins)
    filled = points.count > 0
    gap = (points.accuracy[filled] - points.confidence[filled]).abs()
    weight = points.count[filled].to(gap.dtype)
    return (weight * gap).sum() / weight.sum()


def rmse(mean: Tensor, targets: Tensor) -> Tensor:
    """Root mean squared error over all elements, in the unit of the targets, >= 0.

    Args:
        mean: predictive mean.
        targets: the same shape.

    Raises:
        ValueError: for different shapes, non-finite values or an empty batch.
    """
    f, y = _pair(mean, targets)
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
    f, y = _pair(mean, targets)
    f, v = _pair(f, variance, name="variance")
    if not bool((v > 0).all()):
        raise ValueError(f"the smallest variance is {float(v.min()):g}; every variance must be positive")
    elements = 0.5 * ((y - f).square() / v + v.log() + math.log(2 * math.pi))
    return (elements if elements.ndim == 1 else elements.sum(-1)).mean()


def _rows(probabilities: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Validated class probabilities ``(M, C)`` in float32 at least, and labels ``(M,)``."""
    if not probabilities.is_floating_point():
        raise ValueError(f"probabilities have dtype {probabilities.dtype}; a floating-point dtype is needed")
    if probabilities.numel() == 0:
        raise ValueError(f"probabilities have shape {tuple(probabilities.shape)}: there is nothing to measure")
    p = probabilities.detach() if probabilities.dtype == torch.float64 else probabilities.detach().float()
    if not bool(((p >= 0) & (p <= 1 + 1e-6)).all()):
        raise ValueError(
            f"probabilities range from {float(p.min()):g} to {float(p.max()):g}; give values in [0, 1], not logits"
        )
    if targets.shape == probabilities.shape:
        labels, classes = targets.reshape(-1), 2
        if not bool(((labels == 0) | (labels == 1)).all()):
            raise ValueError("targets of the shape of the probabilities must be 0 or 1")
        return torch.stack([1 - p.reshape(-1), p.reshape(-1)], -1), labels.long()
    if targets.shape != probabilities.shape[:-1] or probabilities.shape[-1] < 2:
        raise ValueError(
            f"targets have shape {tuple(targets.shape)} but probabilities {tuple(probabilities.shape)}; give "
            "(N, ..., C) with targets (N, ...) and C >= 2, or one shape for both"
        )
    p, labels, classes = p.reshape(-1, p.shape[-1]), targets.reshape(-1), p.shape[-1]
    if labels.is_floating_point() or labels.is_complex():
        raise ValueError(f"targets have dtype {targets.dtype}; class indices of an integer dtype are needed")
    labels = labels.long()
    if bool(((labels < 0) | (labels >= classes)).any()):
        raise ValueError(
            f"targets range from {int(labels.min())} to {int(labels.max())}; 0 to {classes - 1} is allowed"
        )
    tolerance = 1e-3 if probabilities.dtype.itemsize >= 4 else 3e-2  # each of C half-precision values is rounded
    worst = float((p.sum(-1) - 1).abs().max())
    if worst > tolerance:
        raise ValueError(f"probabilities miss a sum of 1 over the last dimension by up to {worst:g}; normalise them")
    return p, labels


def _pair(mean: Tensor, targets: Tensor, name: str = "targets") -> tuple[Tensor, Tensor]:
    """Two validated real tensors of one shape in float32 at least."""
    if mean.shape != targets.shape:
        raise ValueError(f"mean has shape {tuple(mean.shape)} but {name} {tuple(targets.shape)}; they must be equal")
    if mean.numel() == 0:
        raise ValueError(f"mean has shape {tuple(mean.shape)}: there is nothing to measure")
    dtype = torch.float64 if torch.float64 in (mean.dtype, targets.dtype) else torch.float32
    f, y = mean.detach().to(dtype), targets.detach().to(dtype)
    if not bool((torch.isfinite(f) & torch.isfinite(y)).all()):
        raise ValueError(f"mean or {name} hold NaN or infinite values")
    return f, y
