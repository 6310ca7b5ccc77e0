"""How well scores tell inputs of another kind from those of the training data; larger scores mean farther away."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from vogn.metrics.inputs import check_level


def auroc(inside: Tensor, outside: Tensor) -> Tensor:
    """Probability that an input from outside scores higher than one from inside, ties half, in [0, 1].

    Args:
        inside: scores of inputs like the training data, any shape, larger means farther (``vogn.ood_score``).
        outside: scores of inputs of another kind, any shape.

    Returns:
        Scalar, float64, on the CPU: scikit-learn's ``roc_auc_score``.

    Raises:
        ValueError: for no scores, or scores that are not finite.
    """
    from sklearn.metrics import roc_auc_score

    a, b = _scores(inside, outside)
    return torch.tensor(roc_auc_score(*_labelled(a, b)), dtype=torch.float64)


def aupr(inside: Tensor, outside: Tensor, *, positive: Literal["outside", "inside"] = "outside") -> Tensor:
    """Area under the precision-recall curve (average precision), in [0, 1]; guessing has the share of the positives.

    Args:
        inside, outside: see :func:`auroc`.
        positive: which of the two is to be found; inputs from inside are found by low scores.

    Returns:
        Scalar, float64, on the CPU: scikit-learn's ``average_precision_score``.

    Raises:
        ValueError: for no scores, scores that are not finite, or an unknown ``positive``.
    """
    from sklearn.metrics import average_precision_score

    if positive not in ("outside", "inside"):
        raise ValueError(f"positive={positive!r}; allowed are 'outside' and 'inside'")
    a, b = _scores(inside, outside)
    labels, scores = _labelled(a, b) if positive == "outside" else _labelled(-b, -a)
    return torch.tensor(average_precision_score(labels, scores), dtype=torch.float64)


def fpr_at_recall(inside: Tensor, outside: Tensor, recall: float = 0.95) -> Tensor:
    """Share of inputs from outside that are accepted where the threshold accepts ``recall`` of those from inside.

    At 0.95 it is the "FPR95" of the literature, which calls accepting positive. An input is accepted if its score is at
    most the threshold, the smallest score that accepts enough.

    Args:
        inside, outside: see :func:`auroc`.
        recall: share of inputs from inside to accept, in (0, 1).

    Returns:
        Scalar, float64, on the CPU.

    Raises:
        ValueError: for no scores, scores that are not finite, or a recall out of range.

    Source: Hendrycks, Mazeika, Dietterich 2019, "Deep anomaly detection with outlier exposure".
    """
    check_level(recall, "recall")
    a, b = _scores(inside, outside)
    needed = min(len(a), math.ceil(recall * len(a) * (1 - 1e-12)))  # 0.95 * 20 is a little above 19
    threshold = a.sort().values[needed - 1]
    return (b <= threshold).double().mean()


def _scores(inside: Tensor, outside: Tensor) -> tuple[Tensor, Tensor]:
    found = []
    for name, values in (("inside", inside), ("outside", outside)):
        if values.numel() == 0:
            raise ValueError(f"{name} has shape {tuple(values.shape)}: there is nothing to measure")
        flat = values.detach().reshape(-1).double().cpu()
        if not bool(torch.isfinite(flat).all()):
            raise ValueError(f"{name} holds NaN or infinite scores")
        found.append(flat)
    return found[0], found[1]


def _labelled(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Labels, 1 for the second, and scores."""
    return torch.cat([torch.zeros(len(low)), torch.ones(len(high))]).long(), torch.cat([low, high])
