"""The rule by which a range test chooses: pure functions of the losses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vogn.errors import RangeTestError

SHARE = 0.9
"""Share of the loss's whole fall that must be done at the rates among which the choice is the middle."""


def smoothed(losses: Sequence[float]) -> list[float]:
    """Centred averages over a twelfth of the steps on either side, over fewer at the ends.

    Args:
        losses: finite, at least one.
    """
    values = np.asarray(losses, dtype=np.float64)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(max(1, len(values) // 12), np.minimum(places, len(values) - 1 - places))
    means = (sums[places + reach + 1] - sums[places - reach]) / (2 * reach + 1)
    return [float(mean) for mean in means]


def choose(rates: Sequence[float], losses: Sequence[float]) -> float:
    """The geometric middle of the rates at which the smoothed loss has done :data:`SHARE` of its fall.

    Its lower end is where learning has become fast, its upper end where steps become too long or the test ends.

    Args:
        rates: rising.
        losses: one per rate.

    Raises:
        RangeTestError: if the loss is lowest in the first twelfth of the steps, or its fall from there smaller than the
            scatter of the losses about the curve.
    """
    curve = np.asarray(smoothed(losses))
    head = max(1, len(losses) // 12)
    start = float(np.mean(losses[:head]))
    lowest = int(curve.argmin())
    fall = start - float(curve[lowest])
    scatter = float(np.std(np.asarray(losses)[: lowest + 1] - curve[: lowest + 1]))
    if lowest < head or not fall > scatter:
        raise RangeTestError(
            f"the loss does not fall at any learning rate ({start:.4g} at first, {curve.min():.4g} at best): the model "
            "has learned already, or the prior, the temperature or the data keep it from learning; else widen the range"
        )
    (basin,) = np.nonzero(curve <= start - SHARE * fall)
    return float(np.sqrt(rates[basin[0]] * rates[basin[-1]]))
