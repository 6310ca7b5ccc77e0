"""A logistic curve for each class."""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import Tensor
from torch.nn import functional

from vogn.calibration.minimise import minimise, spread
from vogn.calibration.recalibrator import Recalibrator, per_class


@final
class PlattScaling(Recalibrator):
    """``sigmoid(slope s + offset)`` of the log-odds ``s`` of label 1; of several classes one against the rest.

    Targets are drawn towards one half, ``(n_1 + 1) / (n_1 + 2)`` for ``n_1`` examples of the class and
    ``1 / (n_0 + 2)`` for ``n_0`` others, so that the numbers are finite whatever the examples. Of several classes the
    curves are normalised to sum to 1, and the predicted class may change.

    Args, Raises: see :class:`Recalibrator`.

    Source: Platt 1999, "Probabilistic outputs for support vector machines", section 2; Zadrozny and Elkan 2002,
    "Transforming classifier scores into accurate multiclass probability estimates".
    """

    kind: ClassVar[str] = "platt"
    SCALE: ClassVar = "logits"

    @property
    def slope(self) -> Tensor:
        """Of each class, ``(C,)``; of label 1 alone ``(1,)``. Float64."""
        return self.numbers["slope"]

    @property
    def offset(self) -> Tensor:
        """Likewise."""
        return self.numbers["offset"]

    def _solve(self, rows: Tensor, labels: Tensor, columns: list[int]) -> dict[str, Tensor]:
        odds = log_odds(rows)
        found = torch.stack([_curve(odds[:, c], labels == c) for c in columns])
        return {"slope": found[:, 0], "offset": found[:, 1]}

    def _apply(self, rows: Tensor) -> Tensor:
        odds, classes = log_odds(rows), rows.shape[-1]
        columns = range(classes) if len(self.slope) == classes else [1]
        pairs = zip(self.slope.tolist(), self.offset.tolist(), strict=True)
        curves = {c: torch.sigmoid(a * odds[:, c] + b) for c, (a, b) in zip(columns, pairs, strict=True)}
        return per_class(curves, classes)


def log_odds(logits: Tensor) -> Tensor:
    """``log p_c - log (1 - p_c)`` of every class, exact also where ``p_c`` rounds to 1."""
    top, predicted = logits.max(-1, keepdim=True)
    log_p = logits.log_softmax(-1)
    small = log_p - torch.log1p(-log_p.exp())
    others = logits.scatter(-1, predicted, -torch.inf).logsumexp(-1, keepdim=True)
    return small.scatter(-1, predicted, top - others)


def _curve(odds: Tensor, belongs: Tensor) -> Tensor:
    """Slope and offset."""
    positive = int(belongs.sum())
    high, low = (positive + 1) / (positive + 2), 1 / (len(belongs) - positive + 2)
    wanted = torch.where(belongs, torch.tensor(high, dtype=odds.dtype), torch.tensor(low, dtype=odds.dtype))
    unit = spread(odds)
    x = odds / unit

    def objective(numbers: Tensor) -> tuple[Tensor, Tensor]:
        logits = numbers[0] * x + numbers[1]
        value = functional.binary_cross_entropy_with_logits(logits, wanted)
        error = (logits.sigmoid() - wanted) / len(x)
        return value, torch.stack([(error * x).sum(), error.sum()])

    start = torch.stack([unit, torch.zeros_like(unit)])
    found = minimise(objective, start, name="Platt scaling")
    return torch.stack([found[0] / unit, found[1]])
