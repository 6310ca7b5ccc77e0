"""The rule by which a range test chooses: pure functions of the losses."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from vogn.errors import RangeTestError

SHARE = 0.9
"""Share of the loss's whole fall that must be done at the rates among which one is chosen."""
POSITION = 1.0 / 3.0
"""Where the choice lies among them, in logarithms: 0 at the smallest, 1 at the largest."""

LEAST_FALL = 1e-4
"""A fall of the loss by a smaller share of it is none: weight noise and rounding do as much where nothing is learnt."""
ERRORS = 2.0
"""A larger rate must be better by so many standard errors: short runs favour large rates, and some win by chance."""
STRIDE = math.sqrt(10.0)
"""Neighbouring rates that :func:`climb` compares differ by this factor."""
Losses = Sequence[float]


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
    """Among the rates at which the smoothed loss has done :data:`SHARE` of its fall, a third of the way up (in logs).

    Their lower end is where learning has become fast, the upper end where steps become too long or the test ends. A
    rate near the upper end survives a short test but not a long run: hence the third.

    Args:
        rates: rising.
        losses: one per rate.

    Raises:
        RangeTestError: if the loss is lowest in the first twelfth of the steps, or its fall from there smaller than the
            scatter of the losses about the curve, or than :data:`LEAST_FALL` of the loss.
    """
    curve = np.asarray(smoothed(losses))
    head = max(1, len(losses) // 12)
    start = float(np.mean(losses[:head]))
    lowest = int(curve.argmin())
    fall = start - float(curve[lowest])
    scatter = float(np.std(np.asarray(losses)[: lowest + 1] - curve[: lowest + 1]))
    if lowest < head or not fall > max(scatter, LEAST_FALL * abs(start)):
        raise RangeTestError(
            f"the loss does not fall at any learning rate ({start:.4g} at first, {curve.min():.4g} at best): the model "
            "has learned already, or the prior, the temperature or the data keep it from learning; else widen the range"
        )
    (basin,) = np.nonzero(curve <= start - SHARE * fall)
    low, high = rates[basin[0]], rates[basin[-1]]
    return float(low * (high / low) ** POSITION)


def climb(
    start: float,
    ends: Callable[[float], Losses],
    smallest: float,
    largest: float,
    stride: float = STRIDE,
    errors: float = ERRORS,
) -> tuple[float, tuple[tuple[float, float], ...], Losses]:
    """From ``start`` to neighbouring rates as long as short runs end better there.

    Runs are comparable in pairs: they see the same batches and the same noise, step by step, or are compared example by
    example. A smaller rate is better if its mean loss is lower: short runs flatter large rates, so that a small one
    that ends lower even there loses nothing in a long run. A larger one must be lower by more than ``errors`` standard
    errors of the differences. The first walk is upwards; the other way is tried where the first step up is no gain, or
    the run at ``start`` fails.

    With ``errors=0`` no side is preferred, and a step up may be a gain by chance alone: both ways are walked, whatever
    the first finds, and the lower of both ends is chosen. That suits settings other than rates.

    Args:
        start: in ``[smallest, largest]``.
        ends: losses at the end of a short run at a rate, always as many; empty for a run that failed.
        smallest, largest: bounds of the rates.
        stride: factor between neighbours, > 1.
        errors: standard errors by which a step up must gain, >= 0.

    Returns:
        The best rate; all that were tried with their mean loss (infinite where a run failed), in ascending order; the
        losses at the best.

    Raises:
        RangeTestError: if all runs failed.
    """
    tried: dict[float, Losses] = {}

    def at(rate: float) -> Losses:
        if rate not in tried:
            tried[rate] = ends(rate)
        return tried[rate]

    def walk(factor: float, errors: float) -> float:
        here = start
        while True:
            rate = min(max(here * factor, smallest), largest)
            at_bound = math.isclose(rate, here, rel_tol=1e-9)  # repeated steps end beside a bound, not at it
            if at_bound or (at(here) and not better(at(rate), at(here), errors)):
                return here
            here = rate

    both = errors == 0.0
    best = walk(stride, errors) if both or at(start) else start
    if both or best == start:
        below = walk(1.0 / stride, 0.0)
        if best == start or not at(best) or better(at(below), at(best), 0.0):
            best = below
    if not at(best):
        raise RangeTestError(
            f"short runs fail at every learning rate that was tried ({', '.join(f'{rate:.2g}' for rate in tried)}), "
            "though single steps do not: lower the temperature, or raise the damping"
        )
    return best, tuple((rate, mean_loss(losses)) for rate, losses in sorted(tried.items())), at(best)


def mean_loss(losses: Losses) -> float:
    """Infinite for a run that failed, which has none."""
    return float(np.mean(losses)) if losses else math.inf


def joined(runs: Sequence[Losses]) -> Losses:
    """All losses of a run that is repeated; empty, a failure, if one of the repetitions failed."""
    return [loss for losses in runs for loss in losses] if all(runs) else []


def plain_loss(loss: float) -> float | None:
    """For JSON, which has no infinity: ``None`` for a run that failed."""
    return loss if math.isfinite(loss) else None


def better(losses: Losses, others: Losses, errors: float) -> bool:
    """Whether losses are lower than others by more than so many standard errors of the paired differences.

    Empty ones are of a run that failed: never better, and worse than any others.
    """
    return better_in_all([losses], [others], errors)


def better_in_all(losses: Sequence[Losses], others: Sequence[Losses], errors: float) -> bool:
    """The same for runs that are repeated: of all losses together.

    The standard error is the larger one of two: that of the examples, and that of the repetitions, which differ by
    chance too. Runs that failed once are failures.
    """
    if not (all(losses) and all(others)):
        return all(losses)
    gains = [np.asarray(b) - np.asarray(a) for a, b in zip(losses, others, strict=True)]
    every = np.concatenate(gains)
    error = float(every.std()) / math.sqrt(len(every))
    if len(gains) > 1:
        error = max(error, float(np.std([gain.mean() for gain in gains], ddof=1)) / math.sqrt(len(gains)))
    return bool(every.mean() > errors * error)
