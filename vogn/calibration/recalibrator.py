"""Maps from class predictions to calibrated probabilities."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar, Literal, TypeVar

import torch
from torch import Tensor

from vogn.calibration.fitted import Fitted
from vogn.metrics.inputs import check_normalised, class_labels, probability_values, two_columns

R = TypeVar("R", bound="Recalibrator")

LOWEST = math.log(torch.finfo(torch.float32).tiny)
"""Logarithm that stands for a probability of zero, about -87."""


class Recalibrator(Fitted):
    """A map that is fitted to held-out predictions and labels, and then applied to others.

    Predictions come in one of two forms: ``(N, ..., C)``, with labels ``(N, ...)``; or the probability (or logit) of
    label 1, of any shape, with 0/1 labels of that shape. The result has the form that :meth:`fit` has seen.

    Args:
        inputs: ``"probabilities"``: the posterior predictive, ``Predictive.mean``. ``"logits"``: unnormalised
            log-probabilities; the logarithm of probabilities is a case of them, minus infinity for zero included.

    Raises:
        ValueError: for unknown ``inputs``.
    """

    OPTIONS: ClassVar[tuple[str, ...]] = ("inputs",)
    SCALE: ClassVar[Literal["logits", "probabilities"]]
    """What the map itself works on."""

    def __init__(self, *, inputs: Literal["probabilities", "logits"] = "probabilities") -> None:
        if inputs not in ("probabilities", "logits"):
            raise ValueError(f"inputs={inputs!r}; allowed are 'probabilities' and 'logits'")
        self.inputs = inputs

    def fit(self: R, predictions: Tensor, targets: Tensor) -> R:
        """Fit to predictions of examples that the model was not trained on.

        Args:
            predictions: probabilities or logits, see the class.
            targets: labels.

        Returns:
            Itself.

        Raises:
            ValueError: for wrong shapes, labels out of range, NaN, an empty batch.
            RecalibrationError: if these examples do not determine the map.
        """
        binary = predictions.shape == targets.shape
        rows = prediction_rows(predictions, inputs=self.inputs, scale=self.SCALE, binary=binary).cpu()
        labels = class_labels(targets, predictions.shape, name=self.inputs).cpu()
        form = torch.tensor([float(binary), rows.shape[-1]], dtype=torch.float64)
        self._numbers = {"form": form, **self._solve(rows, labels, [1] if binary else list(range(rows.shape[-1])))}
        return self

    def __call__(self, predictions: Tensor) -> Tensor:
        """Calibrated probabilities of the shape of the predictions, in float32 at least.

        Args:
            predictions: in the form that :meth:`fit` has seen.

        Raises:
            ValueError: for another number of classes, NaN, an empty batch.
            RecalibrationError: before :meth:`fit`.
        """
        binary, classes = bool(self.numbers["form"][0]), int(self.numbers["form"][1])
        if not binary and (predictions.ndim < 2 or predictions.shape[-1] != classes):
            raise ValueError(f"{self.inputs} have shape {tuple(predictions.shape)}; (N, ..., {classes}) was fitted")
        p = self._apply(prediction_rows(predictions, inputs=self.inputs, scale=self.SCALE, binary=binary))
        p = (p[:, 1] if binary else p).reshape(predictions.shape)
        return p if predictions.dtype == torch.float64 else p.float()

    @abstractmethod
    def _solve(self, rows: Tensor, labels: Tensor, columns: list[int]) -> dict[str, Tensor]:
        """Fitted numbers from ``(M, C)`` in float64 and labels; ``columns`` are those that a map per class is for."""

    @abstractmethod
    def _apply(self, rows: Tensor) -> Tensor:
        """Probabilities ``(M, C)``."""


def prediction_rows(
    predictions: Tensor, *, inputs: str, scale: Literal["logits", "probabilities"], binary: bool
) -> Tensor:
    """Validated predictions ``(M, C)`` in float64, on the scale that a map works on.

    Args:
        predictions: ``(N, ..., C)``, or label 1's if ``binary``.
        inputs: what they are, ``"probabilities"`` or ``"logits"``.
        scale: what is wanted; a probability of zero has the logarithm :data:`LOWEST`.
        binary: whether there is one number for two classes.
    """
    if inputs == "probabilities":
        p = probability_values(predictions)
        p = two_columns(p) if binary else p.reshape(-1, p.shape[-1])
        check_normalised(p, predictions.dtype)
        p = p.double()
        return p if scale == "probabilities" else p.log().clamp_min(LOWEST)
    z = logit_rows(predictions, binary=binary)
    return z if scale == "logits" else z.softmax(-1)


def logit_rows(logits: Tensor, *, binary: bool) -> Tensor:
    """Validated logits ``(M, C)`` in float64; minus infinity becomes :data:`LOWEST` below the row's largest."""
    if not logits.is_floating_point():
        raise ValueError(f"logits have dtype {logits.dtype}; a floating-point dtype is needed")
    if logits.numel() == 0:
        raise ValueError(f"logits have shape {tuple(logits.shape)}: there is nothing to work on")
    z = logits.detach().double()
    if binary:
        z = torch.stack([torch.zeros_like(z.reshape(-1)), z.reshape(-1)], -1)
    else:
        z = z.reshape(-1, z.shape[-1])
    top = z.amax(-1, keepdim=True)
    if not bool(torch.isfinite(top).all()):
        raise ValueError("logits hold NaN or plus infinity, or a row of minus infinities")
    return torch.where(z == -math.inf, top + LOWEST, z)


def normalised(p: Tensor) -> Tensor:
    """Rows that sum to 1; a row of zeros becomes uniform."""
    total = p.sum(-1, keepdim=True)
    return torch.where(total > 0, p / total.clamp_min(torch.finfo(p.dtype).tiny), torch.ones_like(p) / p.shape[-1])


def per_class(columns: dict[int, Tensor], classes: int) -> Tensor:
    """``(M, C)`` from one column for each class, normalised; with column 1 alone the other is the complement."""
    if len(columns) == classes:
        return normalised(torch.stack([columns[c] for c in range(classes)], -1))
    return torch.stack([1 - columns[1], columns[1]], -1)
