"""A scale and an offset for every logit."""

from __future__ import annotations

from typing import ClassVar, Literal, final

import torch
from torch import Tensor
from torch.nn import functional

from vogn.calibration.minimise import minimise, spread
from vogn.calibration.recalibrator import Recalibrator
from vogn.errors import RecalibrationError


@final
class VectorScaling(Recalibrator):
    """``softmax(scale * logits + offset)``, both ``(C,)``, with the smallest NLL on the held-out examples.

    Unlike a temperature it depends on the level of each row's logits: of probabilities the logarithms are taken as
    they are, which is diagonal Dirichlet calibration. It may change the predicted class.

    Args:
        inputs: see :class:`Recalibrator`.
        l2: strength of ``l2 / 2 (|scale - 1|^2 + |offset|^2)`` beside the mean NLL, >= 0; for few examples.

    Raises:
        ValueError: if ``l2`` is negative. :meth:`fit` also raises RecalibrationError without ``l2`` where no finite
            numbers are best: for a class that has no example, and where all labels can be predicted without doubt.

    Source: Guo, Pleiss, Sun, Weinberger 2017, section 4.2; Kull et al. 2019, "Beyond temperature scaling".
    """

    kind: ClassVar[str] = "vector"
    OPTIONS: ClassVar[tuple[str, ...]] = ("inputs", "l2")
    SCALE: ClassVar = "logits"

    def __init__(self, *, inputs: Literal["probabilities", "logits"] = "probabilities", l2: float = 0.0) -> None:
        super().__init__(inputs=inputs)
        if not l2 >= 0:
            raise ValueError(f"l2={l2} must be at least 0")
        self.l2 = l2

    @property
    def scale(self) -> Tensor:
        """Factor of every logit, ``(C,)``, float64."""
        return self.numbers["scale"]

    @property
    def offset(self) -> Tensor:
        """Summand of every logit, ``(C,)``, float64, with mean 0."""
        return self.numbers["offset"]

    def _solve(self, rows: Tensor, labels: Tensor, columns: list[int]) -> dict[str, Tensor]:
        count, classes = rows.shape
        examples = torch.bincount(labels, minlength=classes)
        if not self.l2 and bool((examples == 0).any()):
            raise RecalibrationError(
                f"class {int(examples.argmin())} has no example among {count}, so its offset would be minus infinity: "
                "give more examples or set l2, for example l2=0.01"
            )
        wanted = functional.one_hot(labels, classes).double()
        unit = spread(rows)  # of the scales, so that all numbers have one size
        z = rows / unit

        def objective(x: Tensor) -> tuple[Tensor, Tensor]:
            scale, offset = x.view(2, classes)
            logits = scale * z + offset
            error = (logits.softmax(-1) - wanted) / count
            value = functional.cross_entropy(logits, labels)
            penalty = scale / unit - 1
            value = value + 0.5 * self.l2 * (penalty.square().sum() + offset.square().sum())
            gradient = torch.stack([(error * z).sum(0) + self.l2 * penalty / unit, error.sum(0) + self.l2 * offset])
            return value, gradient.flatten()

        start = torch.stack([unit.expand(classes), torch.zeros(classes, dtype=torch.float64)]).flatten()
        scale, offset = minimise(objective, start, name="vector scaling").view(2, classes)
        logits = scale * z + offset
        if not self.l2 and float(functional.cross_entropy(logits, labels)) < 1e-4:
            raise RecalibrationError(
                f"all {count} labels can be predicted without doubt, so no finite scale is best: give more examples "
                "or set l2, for example l2=0.01"
            )
        return {"scale": scale / unit, "offset": offset - offset.mean()}

    def _apply(self, rows: Tensor) -> Tensor:
        return (self.scale.to(rows.device) * rows + self.offset.to(rows.device)).softmax(-1)
