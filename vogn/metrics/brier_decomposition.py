"""The Brier score as reliability minus resolution plus uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vogn.metrics.binning import BinSums, check_bins, class_sums, sum_by_bin
from vogn.metrics.inputs import class_rows


@dataclass(frozen=True)
class BrierDecomposition:
    """``brier = reliability - resolution + uncertainty + within_bin``, each a scalar.

    Args:
        reliability: mean squared gap between probability and share of outcomes, bin by bin, >= 0; 0 if calibrated.
        resolution: how much the share of outcomes differs between bins, >= 0; more is better.
        uncertainty: variance of the outcomes, a property of the data, >= 0.
        within_bin: what differs inside the bins: variance of the probabilities minus twice their covariance with the
            outcomes; 0 if every bin holds one probability.
    """

    reliability: Tensor
    resolution: Tensor
    uncertainty: Tensor
    within_bin: Tensor

    @property
    def brier(self) -> Tensor:
        """The sum of the parts: the Brier score."""
        return self.reliability - self.resolution + self.uncertainty + self.within_bin

    @classmethod
    def of_sums(cls, sums: BinSums, *, halved: bool, dtype: torch.dtype) -> BrierDecomposition:
        """From sums per class ``(C, bins)``; ``halved`` for the probability of label 1, whose two classes are one."""
        return cls(*((part.sum() / (2 if halved else 1)).to(dtype) for part in sums.brier_parts()))


def brier_decomposition(probabilities: Tensor, targets: Tensor, bins: int | None = 15) -> BrierDecomposition:
    """Murphy's decomposition of :func:`vogn.metrics.brier`, summed over the classes.

    The probabilities of each class are grouped by themselves, so that the parts are those of ``C`` forecasts of yes or
    no; their sum is the Brier score exactly, whatever the bins.

    Args:
        probabilities, targets: see :func:`vogn.metrics.accuracy`.
        bins: number of equal-width bins, >= 1; ``None`` groups equal probabilities, which is for few distinct ones.

    Raises:
        ValueError: see :func:`vogn.metrics.accuracy`; or if ``bins < 1``.

    Example: rain with probability 0.2 on five days and 0.7 on five.
        >>> import torch
        >>> from vogn.metrics import brier_decomposition
        >>> p = torch.tensor([0.2] * 5 + [0.7] * 5, dtype=torch.float64)
        >>> rain = torch.tensor([1, 0, 0, 0, 0, 1, 1, 1, 1, 0])
        >>> parts = brier_decomposition(p, rain, bins=None)
        >>> [round(float(part), 4) for part in (parts.reliability, parts.resolution, parts.uncertainty, parts.brier)]
        [0.005, 0.09, 0.25, 0.165]

    Source: Murphy 1973, "A new vector partition of the probability score"; Stephenson, Coelho, Jolliffe 2008, "Two
    extra components in the Brier score decomposition", for what is inside the bins.
    """
    p, y = class_rows(probabilities, targets)
    halved = probabilities.shape == targets.shape
    if bins is not None:
        check_bins(bins)
        return BrierDecomposition.of_sums(class_sums(p, y, bins), halved=halved, dtype=p.dtype)
    groups, index = p.unique(return_inverse=True)
    labels = torch.nn.functional.one_hot(y, p.shape[-1])
    sums = sum_by_bin(p, labels, index, len(groups))
    return BrierDecomposition.of_sums(sums, halved=halved, dtype=p.dtype)
