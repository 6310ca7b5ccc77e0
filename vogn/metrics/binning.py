"""Sums per bin of forecasts and outcomes: all that the calibration errors and the Brier decomposition need."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ELEMENTS = 2**22
"""Probabilities that are binned at a time, so that copies of them stay small."""


@dataclass(frozen=True)
class BinSums:
    """Sums over the forecasts in each bin; sums of two batches add up to those of both.

    Args:
        count: number of forecasts, ``(..., bins)``.
        forecast: sum of the probabilities ``p``.
        outcome: sum of what came true, ``o`` (0 or 1).
        squared: sum of ``p^2``.
        product: sum of ``p o``.
    """

    count: Tensor
    forecast: Tensor
    outcome: Tensor
    squared: Tensor
    product: Tensor

    def __add__(self, other: BinSums) -> BinSums:
        return BinSums(*(a + b for a, b in zip(self.tensors(), other.tensors(), strict=True)))

    def tensors(self) -> tuple[Tensor, ...]:
        """The five sums, in the order of the constructor."""
        return self.count, self.forecast, self.outcome, self.squared, self.product

    def absolute_gap(self) -> Tensor:
        """``sum_b count_b / N |mean outcome - mean forecast|`` over the last dimension."""
        return (self.outcome - self.forecast).abs().sum(-1) / self.count.sum(-1)

    def squared_gap(self, *, debiased: bool) -> Tensor:
        """``sum_b count_b / N (mean outcome - mean forecast)^2`` over the last dimension.

        ``debiased`` subtracts the variance of the mean outcome, ``o (1 - o) / (count_b - 1)``, and leaves out bins of
        a single forecast, which have no such estimate; the rest may be negative.
        """
        n = self.count.clamp_min(1)
        gaps = ((self.outcome - self.forecast) / n).square()
        if debiased:
            rate = self.outcome / n
            noise = rate * (1 - rate) / (n - 1)
            gaps = torch.where(self.count > 1, gaps - noise, torch.zeros_like(gaps))
        return (self.count * gaps).sum(-1) / self.count.sum(-1)

    def brier_parts(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Reliability, resolution, uncertainty and the within-bin part of the mean of ``(p - o)^2``.

        Source: Murphy 1973; the within-bin part from Stephenson, Coelho, Jolliffe 2008.
        """
        n, total = self.count.clamp_min(1), self.count.sum(-1)
        base = self.outcome.sum(-1) / total
        gap = (self.outcome - self.forecast) / n
        spread = self.outcome / n - base.unsqueeze(-1)
        within = self.squared - self.forecast.square() / n - 2 * (self.product - self.forecast * self.outcome / n)
        reliability = (self.count * gap.square()).sum(-1) / total
        resolution = (self.count * spread.square()).sum(-1) / total
        return reliability, resolution, base * (1 - base), within.sum(-1) / total


def check_bins(bins: int) -> None:
    """Raise ValueError unless there is at least one bin."""
    if bins < 1:
        raise ValueError(f"bins={bins}; at least one bin is needed")


def equal_width(forecasts: Tensor, bins: int) -> Tensor:
    """The bin of each probability, where bin ``b`` is ``(b / bins, (b + 1) / bins]`` and the first one holds 0 too."""
    edges = torch.linspace(0, 1, bins + 1, dtype=forecasts.dtype, device=forecasts.device)
    return torch.bucketize(forecasts.contiguous(), edges[1:-1].contiguous())


def equal_mass(forecasts: Tensor, bins: int) -> Tensor:
    """The bin of each of ``(N,)`` forecasts: consecutive ranks, the first ``N mod bins`` bins hold one more.

    Equal forecasts at a border are told apart by their order; see :func:`average_ties`.
    """
    count = len(forecasts)
    small, larger = divmod(count, bins)
    place = torch.arange(count, device=forecasts.device)
    border = larger * (small + 1)
    of_rank = torch.where(place < border, place // (small + 1), larger + (place - border) // max(small, 1))
    return torch.empty_like(of_rank).scatter_(0, forecasts.argsort(stable=True), of_rank)


def average_ties(values: Tensor, outcomes: Tensor) -> Tensor:
    """Outcomes ``(N,)``, each replaced by the mean over those with an equal value.

    Statistics of ranks are then those of a random order of equal values, and do not depend on the order of the data.
    """
    _, group = values.unique(return_inverse=True)
    groups = int(group.max()) + 1
    total = torch.zeros(groups, dtype=outcomes.dtype, device=outcomes.device).index_add(0, group, outcomes)
    return (total / torch.bincount(group, minlength=groups))[group]


def sum_by_bin(forecasts: Tensor, outcomes: Tensor, index: Tensor, bins: int) -> BinSums:
    """Sums in float64 (float32 where the device has no other).

    Args:
        forecasts: ``(N,)``, or ``(N, C)`` for one set of bins per class.
        outcomes, index: the same shape.
        bins: number of bins.

    Returns:
        Sums ``(bins,)`` or ``(C, bins)``.
    """
    dtype = torch.float32 if forecasts.device.type == "mps" else torch.float64
    p, o = forecasts.to(dtype), outcomes.to(dtype)
    shape = (*forecasts.shape[1:], bins)
    if forecasts.ndim == 2:
        index = index + bins * torch.arange(forecasts.shape[1], device=forecasts.device)
    zeros = torch.zeros(shape, dtype=dtype, device=p.device).flatten()
    flat = index.flatten()

    def added(term: Tensor) -> Tensor:
        return zeros.index_add(0, flat, term.flatten()).view(shape)

    return BinSums(added(torch.ones_like(p)), added(p), added(o), added(p.square()), added(p * o))


def top_label_sums(p: Tensor, y: Tensor, bins: int) -> BinSums:
    """Confidence of the predicted class against whether it is right, in equal-width bins, ``(bins,)``."""
    confidence, predicted = p.max(-1)
    return sum_by_bin(confidence, predicted == y, equal_width(confidence, bins), bins)


def class_sums(p: Tensor, y: Tensor, bins: int) -> BinSums:
    """Probability of every class against whether it is the label, in equal-width bins, ``(C, bins)``."""
    rows = max(1, _ELEMENTS // p.shape[-1])
    total: BinSums | None = None
    for some, labels in zip(p.split(rows), y.split(rows), strict=True):
        sums = sum_by_bin(some, torch.nn.functional.one_hot(labels, p.shape[-1]), equal_width(some, bins), bins)
        total = sums if total is None else total + sums
    assert total is not None
    return total
