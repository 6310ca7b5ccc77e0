"""One number that multiplies all predictive variances."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from vogn.calibration.fitted import Fitted
from vogn.errors import RecalibrationError
from vogn.metrics.inputs import positive, real_pair


@final
class VarianceScaling(Fitted):
    """``factor * variance``, with the factor that has the smallest Gaussian NLL on the held-out examples.

    It is the mean of ``(y - mean)^2 / variance`` over all elements; afterwards that mean is 1.

    Example: predictions with a third of the true standard deviation.
        >>> import torch
        >>> from vogn.calibration import VarianceScaling
        >>> y = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
        >>> scaling = VarianceScaling().fit(torch.zeros(20_000), torch.full((20_000,), 1 / 9), y)
        >>> round(scaling.factor ** 0.5, 1)
        3.0

    Source: Laves, Ihler, Fast, Kahrs, Ortmaier 2020, "Well-calibrated regression uncertainty in medical imaging with
    deep learning".
    """

    kind: ClassVar[str] = "variance"

    @property
    def factor(self) -> float:
        """Of all variances, > 0."""
        return float(self.numbers["factor"])

    def fit(self, mean: Tensor, variance: Tensor, targets: Tensor) -> VarianceScaling:
        """Fit to predictions of examples that the model was not trained on.

        Args:
            mean: predictive mean, any shape.
            variance: the same shape, > 0, noise included.
            targets: the same shape.

        Returns:
            Itself.

        Raises:
            ValueError: for different shapes, a variance that is not positive, non-finite values or an empty batch.
            RecalibrationError: if every target equals its mean.
        """
        f, y = real_pair(mean, targets)
        f, v = real_pair(f, variance, name="variance")
        factor = ((y - f).double().square() / positive(v).double()).mean().cpu()
        if not float(factor) > 0:
            raise RecalibrationError("every target equals its predicted mean, so the best variance is 0")
        self._numbers = {"factor": factor}
        return self

    def __call__(self, variance: Tensor) -> Tensor:
        """Calibrated variances, of the same shape.

        Raises:
            RecalibrationError: before :meth:`fit`.
        """
        return variance * torch.tensor(self.factor).to(variance)
