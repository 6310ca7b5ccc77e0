"""A rising step function for each class."""

from __future__ import annotations

import warnings
from typing import ClassVar, final

import numpy as np
import torch
from torch import Tensor

from vogn.calibration.recalibrator import Recalibrator, per_class
from vogn.errors import RecalibrationWarning


@final
class IsotonicRecalibration(Recalibrator):
    """The rising function of the probability that fits the outcomes best, by scikit-learn's isotonic regression.

    Between examples it is interpolated, beyond them constant. Of several classes there is one against the rest, and the
    results are normalised to sum to 1; where all are 0 they become uniform. Probabilities of exactly 0 and 1 are usual,
    and an example of another kind there has an infinite NLL. Wants a thousand examples or more.

    Args, Raises: see :class:`Recalibrator`.

    Source: Zadrozny and Elkan 2002, "Transforming classifier scores into accurate multiclass probability estimates".
    """

    kind: ClassVar[str] = "isotonic"
    SCALE: ClassVar = "probabilities"

    def _solve(self, rows: Tensor, labels: Tensor, columns: list[int]) -> dict[str, Tensor]:
        from sklearn.isotonic import IsotonicRegression

        warn_of_missing(labels, columns)
        numbers = {}
        for c in columns:
            fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
            fitted.fit(rows[:, c].numpy(), (labels == c).double().numpy())
            numbers[f"places.{c}"] = torch.from_numpy(np.asarray(fitted.X_thresholds_, dtype=np.float64))
            numbers[f"values.{c}"] = torch.from_numpy(np.asarray(fitted.y_thresholds_, dtype=np.float64))
        return numbers

    def _apply(self, rows: Tensor) -> Tensor:
        found = {}
        for c in range(rows.shape[-1]):
            if f"places.{c}" in self.numbers:
                places, values = self.numbers[f"places.{c}"].numpy(), self.numbers[f"values.{c}"].numpy()
                found[c] = torch.from_numpy(np.interp(rows[:, c].cpu().numpy(), places, values)).to(rows.device)
        return per_class(found, rows.shape[-1])


def warn_of_missing(labels: Tensor, columns: list[int]) -> None:
    """Warn of classes without an example, whose probability becomes 0 everywhere."""
    missing = [c for c in columns if not bool((labels == c).any())]
    if missing:
        warnings.warn(
            f"class {missing[0]} has no example among {len(labels)}, so its probability becomes 0 everywhere; give "
            "more examples",
            RecalibrationWarning,
            stacklevel=4,
        )
