"""One probability for each bin of predictions."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from vogn.calibration.isotonic import warn_of_missing
from vogn.calibration.recalibrator import Recalibrator, per_class
from vogn.metrics.binning import check_bins


@final
class HistogramBinning(Recalibrator):
    """Each probability becomes the share of outcomes in its bin; bins hold equally many of the held-out examples.

    Equal probabilities share a bin, so there may be fewer bins than asked for. Of several classes there is one against
    the rest, and the results are normalised to sum to 1. For label 1 alone the calibration error on the held-out
    examples, in these bins, is 0.

    Args:
        inputs: see :class:`Recalibrator`.
        bins: of each class, >= 1.
        smoothing: examples of either outcome that are added to each bin, >= 0; with 1 no probability is 0 or 1.

    Raises:
        ValueError: for an option out of range.

    Source: Zadrozny and Elkan 2001, "Obtaining calibrated probability estimates from decision trees and naive Bayesian
    classifiers".
    """

    kind: ClassVar[str] = "histogram"
    OPTIONS: ClassVar[tuple[str, ...]] = ("inputs", "bins", "smoothing")
    SCALE: ClassVar = "probabilities"

    def __init__(
        self,
        *,
        inputs: Literal["probabilities", "logits"] = "probabilities",
        bins: int = 15,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(inputs=inputs)
        check_bins(bins)
        if not smoothing >= 0:
            raise ValueError(f"smoothing={smoothing} must be at least 0")
        self.bins, self.smoothing = bins, smoothing

    def _solve(self, rows: Tensor, labels: Tensor, columns: list[int]) -> dict[str, Tensor]:
        warn_of_missing(labels, columns)
        numbers = {}
        bins = min(self.bins, len(labels))
        last = [len(labels) * (b + 1) // bins - 1 for b in range(bins)]
        for c in columns:
            ordered = rows[:, c].sort().values
            edges = ordered[last].unique()[:-1].contiguous()  # a bin ends at its largest example, the last at 1
            index = torch.bucketize(rows[:, c].contiguous(), edges)
            outcomes = torch.zeros(len(edges) + 1, dtype=torch.float64).index_add(0, index, (labels == c).double())
            count = torch.bincount(index, minlength=len(edges) + 1)
            numbers[f"edges.{c}"] = edges
            numbers[f"values.{c}"] = (outcomes + self.smoothing) / (count + 2 * self.smoothing)
        return numbers

    def _apply(self, rows: Tensor) -> Tensor:
        found = {}
        for c in range(rows.shape[-1]):
            if f"edges.{c}" in self.numbers:
                edges, values = (self.numbers[f"{part}.{c}"].to(rows.device) for part in ("edges", "values"))
                found[c] = values[torch.bucketize(rows[:, c].contiguous(), edges)]
        return per_class(found, rows.shape[-1])
