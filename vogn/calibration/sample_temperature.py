"""One number that divides the logits of every weight sample, before they are averaged."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, final

import torch
from torch import Tensor

from vogn.calibration.fitted import Fitted
from vogn.calibration.recalibrator import prediction_rows
from vogn.errors import RecalibrationError
from vogn.metrics.inputs import class_labels

_DECADES, _PER_DECADE = 4, 12


@final
class SampleTemperatureScaling(Fitted):
    """``mean_s softmax(logits_s / T)``, with the temperature ``T`` that has the smallest NLL on the held-out examples.

    :class:`TemperatureScaling` divides the logits of the average; here the samples are sharpened first, so their
    disagreement stays and puts a floor under the uncertainty however small ``T`` is. The NLL need not be convex: the
    best of a grid over eight decades is refined between its neighbours.

    Args:
        inputs: ``"probabilities"`` of every weight sample, ``Predictive.samples``; or ``"logits"``.

    Raises:
        ValueError: for unknown ``inputs``. :meth:`fit` raises RecalibrationError where the best temperature is at an
            end of the grid: none is finite and positive.

    Source: Rahaman and Thiery 2021, "Uncertainty quantification and deep ensembles", for scaling before and
    after averaging.
    """

    kind: ClassVar[str] = "sample_temperature"
    OPTIONS: ClassVar[tuple[str, ...]] = ("inputs",)

    def __init__(self, *, inputs: Literal["probabilities", "logits"] = "probabilities") -> None:
        if inputs not in ("probabilities", "logits"):
            raise ValueError(f"inputs={inputs!r}; allowed are 'probabilities' and 'logits'")
        self.inputs = inputs

    @property
    def temperature(self) -> float:
        """The fitted ``T``, > 0."""
        return float(self.numbers["temperature"])

    def fit(self, samples: Tensor, targets: Tensor) -> SampleTemperatureScaling:
        """Fit to predictions of examples that the model was not trained on.

        Args:
            samples: ``(S, N, ..., C)``, or ``(S, *targets.shape)`` for label 1.
            targets: labels ``(N, ...)``, or 0/1 of any shape.

        Returns:
            Itself.

        Raises:
            ValueError: for wrong shapes, labels out of range, NaN, an empty batch.
            RecalibrationError: if these examples do not determine the temperature.
        """
        from scipy.optimize import minimize_scalar

        binary = samples.shape[1:] == targets.shape
        labels = class_labels(targets, samples.shape[1:], name=self.inputs)
        z = self._logits(samples, binary=binary)
        index = labels.to(z.device).expand(len(z), -1).unsqueeze(-1)

        def surprise(log_sharpness: float) -> float:
            of_label = (math.exp(log_sharpness) * z).log_softmax(-1).gather(-1, index).squeeze(-1)
            return float(math.log(len(z)) - of_label.logsumexp(0).mean())

        spread = float((z - z.mean(-1, keepdim=True)).abs().mean())
        if spread == 0:
            raise RecalibrationError("these predictions are all uniform, so no temperature changes them")
        ends = _DECADES * _PER_DECADE
        grid = [math.log(10) * k / _PER_DECADE - math.log(spread) for k in range(-ends, ends + 1)]
        values = [surprise(place) for place in grid]
        best = min(range(len(grid)), key=values.__getitem__)
        if min(values[0], values[-1]) < values[best] + 1e-12:  # an end is as good: the NLL is flat towards it
            why = "uniform predictions are better" if values[0] <= values[-1] else "sharper is always better"
            raise RecalibrationError(f"no temperature is best: {why}; give more examples that rows and labels agree on")
        found = minimize_scalar(
            surprise, bounds=(grid[best - 1], grid[best + 1]), method="bounded", options={"xatol": 1e-9}
        )
        if not found.success or found.fun > values[best]:
            raise RecalibrationError(f"the temperature was not found in {found.nfev} evaluations: {found.message}")
        form = torch.tensor([float(binary), z.shape[-1]], dtype=torch.float64)
        self._numbers = {"form": form, "temperature": torch.tensor(math.exp(-found.x), dtype=torch.float64)}
        return self

    def __call__(self, samples: Tensor) -> Tensor:
        """Calibrated probabilities, averaged: the shape of ``samples`` without the first dimension, float32 at least.

        Raises:
            ValueError: for another number of classes, NaN, an empty batch.
            RecalibrationError: before :meth:`fit`.
        """
        binary, classes = bool(self.numbers["form"][0]), int(self.numbers["form"][1])
        if not binary and (samples.ndim < 3 or samples.shape[-1] != classes):
            raise ValueError(f"samples have shape {tuple(samples.shape)}; (S, N, ..., {classes}) was fitted")
        p = (self._logits(samples, binary=binary) / self.temperature).softmax(-1).mean(0)
        p = (p[:, 1] if binary else p).reshape(samples.shape[1:])
        return p if samples.dtype == torch.float64 else p.float()

    def _logits(self, samples: Tensor, *, binary: bool) -> Tensor:
        """``(S, M, C)`` in float64."""
        rows = prediction_rows(samples, inputs=self.inputs, scale="logits", binary=binary)
        return rows.reshape(len(samples), -1, rows.shape[-1])
