"""Predictions that may be withheld: the error rate of what is kept."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vogn.metrics.binning import average_ties
from vogn.metrics.inputs import class_rows


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate of the most certain predictions, for every number of them.

    Args:
        coverage: fraction of predictions that are kept, ``1/N, 2/N, ..., 1``, ``(N,)``.
        risk: error rate among these, ``(N,)``.
        uncertainty: of the last one that is kept, ``(N,)``: the threshold.
    """

    coverage: Tensor
    risk: Tensor
    uncertainty: Tensor


def risk_coverage(probabilities: Tensor, targets: Tensor, uncertainty: Tensor | None = None) -> RiskCoverage:
    """Error rate against the fraction of predictions that are kept, the most certain first.

    Equally uncertain predictions are taken in the mean over random orders, so the order of the data does not matter.

    Args:
        probabilities, targets: see :func:`vogn.metrics.accuracy`.
        uncertainty: one number per target, larger means less certain, for example ``vogn.ood_score``; ``None`` is minus
            the probability of the predicted class.

    Raises:
        ValueError: see :func:`vogn.metrics.accuracy`; for uncertainties of another shape, or not finite.

    Source: Geifman and El-Yaniv 2017, "Selective classification for deep neural networks".
    """
    p, y = class_rows(probabilities, targets)
    confidence, predicted = p.max(-1)
    if uncertainty is None:
        order_by = -confidence
    else:
        if uncertainty.numel() != len(y):
            raise ValueError(
                f"uncertainty has shape {tuple(uncertainty.shape)} but targets {tuple(targets.shape)}; "
                "one value per target is needed"
            )
        order_by = uncertainty.detach().reshape(-1).to(p.device)
        if not bool(torch.isfinite(order_by).all()):
            raise ValueError("uncertainty holds NaN or infinite values")
    wrong = average_ties(order_by, (predicted != y).to(p.dtype))
    ordered, order = order_by.sort(stable=True)
    kept = torch.arange(1, len(y) + 1, dtype=p.dtype, device=p.device)
    return RiskCoverage(kept / len(y), wrong[order].cumsum(0) / kept, ordered)


def aurc(probabilities: Tensor, targets: Tensor, uncertainty: Tensor | None = None) -> Tensor:
    """Area under the risk-coverage curve: the error rate of the ``k`` most certain, averaged over ``k``, in [0, 1].

    0 if there are no errors; the error rate if the uncertainty says nothing about them.

    Args, Raises: see :func:`risk_coverage`.

    Source: Geifman, Uziel, El-Yaniv 2019, "Bias-reduced uncertainty estimation for deep neural classifiers".
    """
    return risk_coverage(probabilities, targets, uncertainty).risk.mean()
