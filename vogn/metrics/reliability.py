"""Calibration of the predicted class in bins of confidence: reliability diagrams and the expected calibration error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vogn.metrics.inputs import check_level, class_rows


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

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Clopper-Pearson interval of each bin's accuracy: it holds the true one at least ``level`` of the time.

        Args:
            level: in (0, 1), of every bin by itself.

        Returns:
            Lower and upper ends, ``(bins,)``; NaN for an empty bin.

        Raises:
            ValueError: if the level is out of range.

        Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
        binomial".
        """
        from scipy.stats import beta

        check_level(level)
        count = self.count.cpu().double().numpy()
        correct = (self.accuracy.cpu().double().numpy() * count).round()
        tail = 0.5 - 0.5 * level
        low = beta.ppf(tail, correct, count - correct + 1)  # NaN without a success, where the end is 0
        high = beta.ppf(1 - tail, correct + 1, count - correct)
        ends = (torch.from_numpy(low), torch.from_numpy(high))
        low, high = (end.to(self.accuracy).nan_to_num(nan=value) for end, value in zip(ends, (0.0, 1.0), strict=True))
        empty = self.count == 0
        return low.masked_fill(empty, float("nan")), high.masked_fill(empty, float("nan"))


def reliability(probabilities: Tensor, targets: Tensor, bins: int = 15) -> Reliability:
    """Confidence and accuracy of the predicted class in equal-width bins.

    Args:
        probabilities, targets: see :func:`vogn.metrics.accuracy`.
        bins: number of bins, >= 1.

    Raises:
        ValueError: see :func:`vogn.metrics.accuracy`; or if ``bins < 1``.
    """
    if bins < 1:
        raise ValueError(f"bins={bins}; at least one bin is needed")
    p, y = class_rows(probabilities, targets)
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
