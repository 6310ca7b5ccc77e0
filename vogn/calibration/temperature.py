"""One number that divides all logits."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor

from vogn.calibration.recalibrator import Recalibrator
from vogn.errors import RecalibrationError


@final
class TemperatureScaling(Recalibrator):
    """``softmax(logits / T)`` with the temperature ``T`` that has the smallest NLL on the held-out examples.

    Of probabilities it is ``p^(1/T)``, normalised. The predicted class stays. ``T > 1`` makes predictions less sure.
    The NLL is convex in ``1/T``, so the temperature is found to rounding, by bisection of the slope (Brent's method).

    Args, Raises: see :class:`Recalibrator`. :meth:`fit` also raises RecalibrationError where no positive finite
        temperature is best: if every label is predicted (then ``T = 0`` is), or if on average the true label's logit
        is below the mean of all (then uniform predictions are better).

    Example: logits that are three times too large.
        >>> import torch
        >>> from vogn.calibration import TemperatureScaling
        >>> source = torch.Generator().manual_seed(0)
        >>> z = torch.randn(20_000, 3, generator=source)
        >>> y = torch.multinomial(z.softmax(-1), 1, generator=source).squeeze(-1)
        >>> round(TemperatureScaling(inputs="logits").fit(3 * z, y).temperature, 1)
        3.0

    Source: Guo, Pleiss, Sun, Weinberger 2017, "On calibration of modern neural networks", section 4.2.
    """

    kind: ClassVar[str] = "temperature"
    SCALE: ClassVar = "logits"

    @property
    def temperature(self) -> float:
        """The fitted ``T``, > 0."""
        return float(self.numbers["temperature"])

    def _solve(self, rows: Tensor, labels: Tensor, columns: list[int]) -> dict[str, Tensor]:
        from scipy.optimize import brentq

        z = rows - rows.amax(-1, keepdim=True)
        of_label = z.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
        if bool((of_label == 0).all()):
            raise RecalibrationError(
                f"all {len(labels)} labels have the largest probability, so the best temperature is 0: give more "
                "examples, some of which the model gets wrong"
            )

        def slope(sharpness: float) -> float:
            return float(((sharpness * z).softmax(-1) * z).sum(-1).mean() - of_label.mean())

        if slope(0.0) >= 0:
            raise RecalibrationError(
                "these predictions are no better than uniform ones at any temperature: check that rows and labels "
                "belong together"
            )
        high = 1.0 / float(z.abs().mean())
        while slope(high) <= 0:  # ends: with a wrong prediction the slope is positive from some sharpness on
            high *= 2
        sharpness, found = brentq(slope, 0.0, high, xtol=1e-13 * high, rtol=1e-13, full_output=True, disp=False)
        if not found.converged or sharpness <= 0:
            raise RecalibrationError(f"the temperature was not found in {found.iterations} iterations: {found.flag}")
        return {"temperature": torch.tensor(1 / sharpness, dtype=torch.float64)}

    def _apply(self, rows: Tensor) -> Tensor:
        return (rows / self.temperature).softmax(-1)
