"""Intervals of real targets that hold them as often as they promise."""

from __future__ import annotations

from typing import ClassVar, TypeVar, final

import torch
from torch import Tensor

from vogn.calibration.conformal_quantile import conformal_quantile
from vogn.calibration.fitted import Fitted
from vogn.metrics.inputs import check_level, positive, real_pair

T = TypeVar("T", bound="_Intervals")


class _Intervals(Fitted):
    OPTIONS: ClassVar[tuple[str, ...]] = ("level",)

    def __init__(self, level: float = 0.9) -> None:
        check_level(level)
        self.level = level

    @property
    def threshold(self) -> Tensor:
        """Largest score inside, one for each output: the shape of an example. Float64, on the CPU."""
        return self.numbers["threshold"]

    def _threshold_for(self, values: Tensor) -> Tensor:
        if values.shape[1:] != self.threshold.shape:
            raise ValueError(
                f"an example has shape {tuple(values.shape[1:])}; {tuple(self.threshold.shape)} was fitted"
            )
        return self.threshold.to(values.device)

    def _keep(self: T, scores: Tensor) -> T:
        self._numbers = {"threshold": conformal_quantile(scores, self.level).cpu()}
        return self


@final
class ConformalGaussian(_Intervals):
    """``mean ± threshold * standard deviation``: intervals that hold the target with probability ``level``.

    It holds whatever the model, on average over held-out and new examples that are exchangeable, for any number of
    them and for each output by itself. Standard deviations only say where intervals are wider than elsewhere.

    Args:
        level: probability of holding the target, in (0, 1).

    Raises:
        ValueError: if the level is out of range.

    Source: Lei, G'Sell, Rinaldo, Tibshirani, Wasserman 2018, "Distribution-free predictive inference for regression",
    section 5.2.
    """

    kind: ClassVar[str] = "conformal_gaussian"

    def fit(self, mean: Tensor, variance: Tensor, targets: Tensor) -> ConformalGaussian:
        """Find the threshold on predictions of examples that the model was not trained on.

        Args:
            mean: predictive mean, ``(N, ...)``; the first dimension is the examples.
            variance: the same shape, > 0, noise included.
            targets: the same shape.

        Returns:
            Itself.

        Raises:
            ValueError: for different shapes, a variance that is not positive, non-finite values or an empty batch.

        Warns:
            RecalibrationWarning: for so few examples that intervals must be infinite.
        """
        f, y = real_pair(mean, targets)
        f, v = real_pair(f, variance, name="variance")
        return self._keep((y - f).double().abs() / positive(v).double().sqrt())

    def __call__(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, of the shape of ``mean``, in float32 at least.

        Raises:
            ValueError: see :meth:`fit`; for another shape of an example.
            RecalibrationError: before :meth:`fit`.
        """
        f, v = real_pair(mean, variance, name="variance")
        half = self._threshold_for(f) * positive(v).double().sqrt()
        return (f - half).to(f.dtype), (f + half).to(f.dtype)


@final
class ConformalQuantiles(_Intervals):
    """``[low - threshold, high + threshold]``: quantiles of a model, moved until they hold ``level`` of the targets.

    The guarantee is that of :class:`ConformalGaussian`. A negative threshold narrows; ends that would cross meet in the
    middle.

    Args:
        level: probability of holding the target, in (0, 1).

    Raises:
        ValueError: if the level is out of range.

    Example:
        >>> import torch
        >>> from vogn.calibration import ConformalQuantiles
        >>> y = torch.arange(99.0)
        >>> intervals = ConformalQuantiles(level=0.9).fit(0 * y, 0 * y + 50, y)  # targets reach 98, the upper ends 50
        >>> [float(end) for end in intervals(torch.zeros(1), torch.full((1,), 50.0))]
        [-39.0, 89.0]

    Source: Romano, Patterson, Candès 2019, "Conformalized quantile regression", algorithm 1.
    """

    kind: ClassVar[str] = "conformal_quantiles"

    def fit(self, low: Tensor, high: Tensor, targets: Tensor) -> ConformalQuantiles:
        """Find the threshold on predictions of examples that the model was not trained on.

        Args:
            low, high: ends of an interval of the model, for example ``Predictive.interval``, ``(N, ...)``; the first
                dimension is the examples.
            targets: the same shape.

        Returns:
            Itself.

        Raises:
            ValueError: for different shapes, non-finite values or an empty batch.

        Warns:
            RecalibrationWarning: for so few examples that intervals must be infinite.
        """
        a, y = real_pair(low, targets, mean_name="low")
        b, _ = real_pair(high, targets, mean_name="high")
        return self._keep(torch.maximum(a.double() - y, y.double() - b))

    def __call__(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends, of the shape of ``low``, in float32 at least.

        Raises:
            ValueError: see :meth:`fit`; for another shape of an example.
            RecalibrationError: before :meth:`fit`.
        """
        a, b = real_pair(low, high, name="high", mean_name="low")
        threshold = self._threshold_for(a)
        lower, upper = a - threshold, b + threshold
        middle = 0.5 * (a.double() + b.double())
        crossed = lower > upper
        return torch.where(crossed, middle, lower).to(a.dtype), torch.where(crossed, middle, upper).to(a.dtype)
