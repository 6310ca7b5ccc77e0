"""How much each weight matters: small means that it can be set to zero."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vogn.posterior import Posterior

Score = Callable[[Tensor, Tensor], Tensor]
"""From means and variances to scores of the same shape."""


def signal_to_noise(mean: Tensor, variance: Tensor) -> Tensor:
    """``|m| / s``: how surely a weight differs from zero (Graves 2011; Blundell et al. 2015, section 5.1)."""
    return mean.abs() / variance.sqrt()


def second_order_loss(mean: Tensor, variance: Tensor) -> Tensor:
    """``m^2 / (2 s^2)``: how much minus the log density rises, in nats; optimal brain damage (LeCun et al. 1990) with
    the precision ``1 / s^2`` for the Hessian. Orders weights as :func:`signal_to_noise` does; sums over groups."""
    return 0.5 * mean.square() / variance


def signal_plus_noise(mean: Tensor, variance: Tensor) -> Tensor:
    """``|m| + s``: keeps weights that may be large."""
    return mean.abs() + variance.sqrt()


def magnitude(mean: Tensor, variance: Tensor) -> Tensor:
    """``|m|``: needs no posterior; what others are compared with."""
    return mean.abs()


SCORES: dict[str, Score] = {
    "snr": signal_to_noise,
    "second_order": second_order_loss,
    "signal_plus_noise": signal_plus_noise,
    "magnitude": magnitude,
}
"""Name to score."""


def scores(posterior: Posterior, score: str = "snr") -> dict[str, Tensor]:
    """The score of every weight.

    Args:
        posterior: with means and marginal variances.
        score: key of :data:`SCORES`.

    Returns:
        ``{name: shape}``, >= 0; infinite (or, for a mean of zero, zero) where a weight has no variance.

    Raises:
        ValueError: if the score is unknown.
    """
    if score not in SCORES:
        raise ValueError(f"score={score!r} is unknown; choose one of {', '.join(SCORES)}")
    variances = posterior.variance()
    return {
        name: torch.nan_to_num(SCORES[score](mean, variances[name]), nan=0.0, posinf=torch.inf)
        for name, mean in posterior.mean().items()
    }
