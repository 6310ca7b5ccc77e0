"""How much a figure would change with other test examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class BootstrapInterval:
    """A figure with its interval.

    Args:
        estimate: on the data as they are.
        low, high: ends of the interval, of the shape of ``estimate``.
        standard_error: standard deviation over the replicates.
        replicates: values on the resampled data, ``(R, *estimate.shape)``.
    """

    estimate: Tensor
    low: Tensor
    high: Tensor
    standard_error: Tensor
    replicates: Tensor


def bootstrap_interval(
    metric: Callable[..., Tensor],
    *tensors: Tensor,
    level: float = 0.95,
    replicates: int = 1000,
    method: Literal["basic", "percentile"] = "basic",
    seed: int = 0,
) -> BootstrapInterval:
    """Confidence interval of any metric, by drawing examples with replacement.

    All tensors are resampled with the same indices, so that a difference of two models on the same examples,
    ``lambda p, q, y: nll(p, y) - nll(q, y)``, gets the interval of paired differences.

    Args:
        metric: called with resampled tensors; returns a tensor of fixed shape, a scalar or several figures.
        tensors: at least one; the first dimension of each is the examples.
        level: in (0, 1).
        replicates: how many times to resample, >= 2; ends at 0.95 want about 1000.
        method: ``"basic"``: quantiles of the replicates, mirrored at the estimate; ends may leave the range of the
            metric. ``"percentile"``: the quantiles themselves, which is wrong for metrics that resampling makes larger,
            such as calibration errors: these intervals lie above the truth.
        seed: the interval is a function of the data and the seed.

    Raises:
        ValueError: for no tensors, different numbers of examples, or an option out of range.

    Example:
        >>> import torch
        >>> from vogn.metrics import bootstrap_interval, rmse
        >>> y = torch.arange(100.0)
        >>> found = bootstrap_interval(rmse, y + 1, y, replicates=50)
        >>> float(found.low), float(found.estimate), float(found.high)
        (1.0, 1.0, 1.0)

    Source: Efron and Tibshirani 1993, "An introduction to the bootstrap", chapter 13 (percentile), Davison and
    Hinkley 1997, section 5.2 (basic).
    """
    if not tensors:
        raise ValueError("give the tensors that the metric takes after it; there is nothing to resample")
    counts = {len(tensor) if tensor.ndim else 0 for tensor in tensors}
    if len(counts) != 1 or 0 in counts:
        raise ValueError(f"the tensors hold {sorted(counts)} examples; one number, at least 1, is needed")
    if not 0.0 < level < 1.0:
        raise ValueError(f"level={level} must lie between 0 and 1, for example 0.95")
    if replicates < 2:
        raise ValueError(f"replicates={replicates}; at least 2 are needed, about 1000 for an interval at 0.95")
    if method not in ("basic", "percentile"):
        raise ValueError(f"method={method!r}; allowed are 'basic' and 'percentile'")
    count = counts.pop()
    generator = torch.Generator().manual_seed(seed)
    estimate = metric(*tensors)
    values = []
    for _ in range(replicates):
        index = torch.randint(count, (count,), generator=generator)
        values.append(metric(*(tensor[index.to(tensor.device)] for tensor in tensors)))
    drawn = torch.stack(values)
    drawn = drawn if drawn.is_floating_point() else drawn.double()
    ends = torch.tensor([0.5 - 0.5 * level, 0.5 + 0.5 * level], dtype=drawn.dtype, device=drawn.device)
    low, high = drawn.quantile(ends, dim=0)
    if method == "basic":
        low, high = 2 * estimate - high, 2 * estimate - low
    return BootstrapInterval(estimate, low, high, drawn.std(0), drawn)
