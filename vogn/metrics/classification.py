"""Proper scores and accuracy of class probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from vogn.metrics.inputs import class_rows


def accuracy(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Fraction of predictions whose most probable class is the target, in [0, 1]; ties go to the lower class.

    Args:
        probabilities: ``(N, ..., C)``, or the probability of label 1.
        targets: integers ``(N, ...)``, or 0/1 of the shape of ``probabilities``.

    Raises:
        ValueError: for probabilities outside [0, 1] or not summing to 1, wrong shapes or labels, an empty batch.
    """
    p, y = class_rows(probabilities, targets)
    return (p.argmax(-1) == y).to(p.dtype).mean()


def nll(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Mean of ``-log p_y`` in nats, >= 0; finite also at ``p_y = 0`` (raised to the smallest normal number).

    Args, Raises: see :func:`vogn.metrics.accuracy`.
    """
    p, y = class_rows(probabilities, targets)
    return -p.gather(-1, y.unsqueeze(-1)).clamp_min(torch.finfo(p.dtype).tiny).log().mean()


def brier(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Brier score: mean of ``sum_c (p_c - [c = y])^2`` in [0, 2]; of ``(p - y)^2`` in [0, 1] for the 0/1 form.

    Args, Raises: see :func:`vogn.metrics.accuracy`.

    Source: Brier 1950, "Verification of forecasts expressed in terms of probability".
    """
    p, y = class_rows(probabilities, targets)
    error = p - torch.nn.functional.one_hot(y, p.shape[-1]).to(p.dtype)
    score = error.square().sum(-1).mean()
    return score / 2 if probabilities.shape == targets.shape else score
