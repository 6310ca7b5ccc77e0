"""What pruning costs: quality over the share of weights that are zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vogn.metrics import accuracy, rmse
from vogn.posterior import Posterior
from vogn.predict import predict
from vogn.pruning.pruning import prune

SHARES = (0.0, 0.5, 0.75, 0.9, 0.95, 0.98)
"""Shares that are looked at by default."""


@dataclass(frozen=True)
class PruningPoint:
    """Quality at one share.

    Args:
        share: of what may go.
        sparsity: share of all weights that are zero.
        nll: mean negative log predictive density, in nats.
        quality: accuracy in [0, 1] of labels, root mean squared error of real targets.
    """

    share: float
    sparsity: float
    nll: float
    quality: float


class PruningCurve(tuple[PruningPoint, ...]):
    """Points in the order of the shares."""

    def largest(self, tolerance: float) -> PruningPoint:
        """The sparsest point whose NLL is at most ``tolerance`` nats above that of the first."""
        return max((point for point in self if point.nll <= self[0].nll + tolerance), key=lambda point: point.share)


def pruning_curve(
    model: nn.Module,
    posterior: Posterior,
    x: Any,
    y: Tensor,
    shares: Sequence[float] = SHARES,
    *,
    method: str = "mc",
    samples: int = 32,
    seed: int = 0,
    **options: Any,
) -> PruningCurve:
    """Predict held-out data with ever fewer weights.

    Args:
        model: the network.
        posterior: see :func:`vogn.pruning.prune`; knows its likelihood.
        x: inputs of data that were not trained on.
        y: their targets.
        shares: in rising order; the first is what others are compared with.
        method, samples, seed: of :func:`vogn.predict`; ``"mean"`` looks at the network at the mean.
        **options: of :func:`vogn.pruning.prune`: ``score``, ``by``, ``per``, ``only``.

    Raises:
        ValueError: see :func:`vogn.pruning.prune` and :func:`vogn.predict`; or if there are no shares.
    """
    if not shares:
        raise ValueError("give at least one share")
    points = []
    for share in shares:
        pruned = prune(posterior, share, **options)
        found = predict(model, pruned, x, method=method, samples=samples, seed=seed)
        targets = y.to(found.mean.device)
        quality = rmse(found.mean, targets) if targets.is_floating_point() else accuracy(found.mean, targets)
        points.append(PruningPoint(share, pruned.sparsity, float(found.nll(y).mean()), float(quality)))
    return PruningCurve(points)
