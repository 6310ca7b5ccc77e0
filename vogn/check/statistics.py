"""Numbers with intervals over inputs, correlations and quantiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

RESAMPLES = 1000
"""Bootstrap resamples of the inputs."""


class Estimate(NamedTuple):
    """A number with its 95 % interval over inputs (bootstrap percentiles).

    Args:
        value: the number at all inputs.
        low, high: ends of the interval.
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def bootstrap(statistic: Callable[..., Tensor], *values: Tensor, seed: int = 0) -> Estimate:
    """A statistic and its interval when the inputs are drawn again with replacement.

    Args:
        statistic: takes ``(*batch, N, M)`` of each value, returns ``batch``.
        values: ``(N, M)`` each: inputs, and what there is of every input; an input's numbers stay together.
        seed: of the resamples.
    """
    count = len(values[0])
    index = torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))
    value = float(statistic(*values))
    found = statistic(*(tensor[index] for tensor in values))
    found = found[torch.isfinite(found)]
    if not len(found):
        return Estimate(value, float("nan"), float("nan"))
    low, high = torch.quantile(found, torch.tensor([0.025, 0.975], dtype=found.dtype)).tolist()
    return Estimate(value, low, high)


def pearson(a: Tensor, b: Tensor) -> Tensor:
    """Correlation over the last two dimensions; NaN where one side is constant."""
    a, b = a.flatten(-2), b.flatten(-2)
    da, db = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    scale = da.norm(dim=-1) * db.norm(dim=-1)
    tiny = 1e-12 * a.norm(dim=-1) * b.norm(dim=-1)
    return torch.where(scale > tiny, (da * db).sum(-1) / scale, torch.nan)


def median_ratio(a: Tensor, b: Tensor) -> Tensor:
    """Median of ``a / b`` over the last two dimensions; where ``b`` is zero there is no ratio."""
    usable = b > 1e-12 * b.amax((-2, -1), keepdim=True)
    ratio = torch.where(usable, a / torch.where(usable, b, 1.0), torch.nan)
    return ratio.flatten(-2).nanmedian(-1).values


def root_mean_square(a: Tensor) -> Tensor:
    """Over the last two dimensions."""
    return a.square().mean((-2, -1)).sqrt()


def weighted_quantiles(values: Tensor, weights: Tensor, probabilities: list[float]) -> Tensor:
    """The smallest value at which the accumulated weight reaches each probability.

    Args:
        values: ``(S, ...)``.
        weights: ``(S,)``, >= 0, with sum 1.
        probabilities: in (0, 1).

    Returns:
        ``(len(probabilities), ...)``.
    """
    ordered, order = values.flatten(1).sort(0)
    reached = weights[order].cumsum(0)
    places = [(reached < p).sum(0).clamp_max(len(values) - 1) for p in probabilities]
    return torch.stack([ordered.gather(0, place[None])[0] for place in places]).view(-1, *values.shape[1:])
