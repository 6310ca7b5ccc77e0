"""Every figure about real predictions, in one call or batch by batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from vogn.likelihoods.gaussian import mixture_quantile
from vogn.metrics.bootstrap import bootstrap_interval
from vogn.metrics.crps import (
    gaussian_crps_elements,
    gaussian_mixture_crps_elements,
)
from vogn.metrics.inputs import check_level, positive, real_pair, real_samples
from vogn.metrics.intervals import (
    gaussian_mixture_pit,
    gaussian_pit,
    interval_covered_elements,
    interval_score_elements,
    pit_counts,
    quantile_calibration_error,
)
from vogn.metrics.regression import gaussian_nll_examples
from vogn.metrics.report_format import check_replicates, device_free, figures_as_text, plain_intervals


@dataclass(frozen=True)
class RegressionReport:
    """Figures about real predictions; each is explained at the function of its name in :mod:`vogn.metrics`.

    Args:
        count: number of targets, all elements counted.
        level: probability of the intervals.
        rmse, crps, sharpness: in the unit of the targets.
        nll: in nats, per example; the targets of an example are taken together.
        coverage, width, interval_score: of the central intervals of probability ``level``.
        quantile_calibration_error: mean gap over the quantiles.
        intervals: name to ``[low, high]``; empty unless they were asked for.
    """

    count: int
    level: float
    rmse: float
    nll: float
    crps: float
    coverage: float
    width: float
    interval_score: float
    quantile_calibration_error: float
    sharpness: float
    intervals: dict[str, list[float]] = field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """The figures by name, without counts and intervals."""
        return {name: value for name, value in asdict(self).items() if name not in ("count", "level", "intervals")}

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        title = f"{self.count} targets, intervals of {100 * self.level:g} %"
        return figures_as_text(title, self.figures(), self.intervals)


class RegressionMeter:
    """The figures batch by batch, in memory for ``levels`` counts; equal to those of all batches at once.

    Args:
        level: probability of the intervals, in (0, 1).
        levels: number of quantiles of the calibration error, >= 1.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> import torch
        >>> from vogn.metrics import RegressionMeter
        >>> meter = RegressionMeter(level=0.5)
        >>> for y in torch.arange(6.0).split(2):
        ...     meter.update(torch.zeros(2), torch.full((2,), 25.0), y)
        >>> report = meter.report()
        >>> report.count, round(report.rmse, 3), round(report.coverage, 3)
        (6, 3.028, 0.667)
    """

    def __init__(self, level: float = 0.9, levels: int = 99) -> None:
        check_level(level)
        if levels < 1:
            raise ValueError(f"levels={levels}; at least one quantile is needed")
        self.level, self.levels = level, levels
        # elements, examples, squared error, nll, crps, covered, width, interval score, variance
        self._totals = torch.zeros(9, dtype=torch.float64)
        self._pit = torch.zeros(levels + 1, dtype=torch.int64)

    def update(
        self,
        mean: Tensor,
        variance: Tensor,
        targets: Tensor,
        *,
        components: Tensor | None = None,
        noise_variance: Tensor | None = None,
    ) -> None:
        """Add a batch.

        Args:
            mean: predictive mean, ``(N,)`` or ``(N, ..., K)``.
            variance: predictive variance, noise included, the same shape, > 0.
            targets: the same shape.
            components: ``(S, *mean.shape)``: the prediction is the equal mixture of ``N(components[s],
                noise_variance)``, for example of ``Predictive.samples``; NLL, CRPS, intervals and quantiles are those
                of the mixture. ``None``: it is ``N(mean, variance)``.
            noise_variance: with ``components``, of the observations around each, the shape of ``mean`` or a scalar, for
                example ``Predictive.aleatoric``.

        Raises:
            ValueError: for different shapes, variances that are not positive, non-finite values, an empty batch, or
                one of ``components`` and ``noise_variance`` without the other.
        """
        self._add(*_by_element(mean, variance, targets, components, noise_variance, self.level))

    def _add(self, parts: Sequence[Tensor], pit: Tensor) -> None:
        """What :func:`_by_element` returns."""
        squared, surprise, *_ = parts
        totals = [squared.numel(), surprise.numel(), *(float(part.sum()) for part in parts)]
        self._totals = self._totals + torch.tensor(totals, dtype=torch.float64)
        self._pit = self._pit + pit_counts(pit, self.levels)

    def merge(self, other: RegressionMeter) -> None:
        """Add what another meter has seen, for example on another process.

        Raises:
            ValueError: for another level or number of quantiles.
        """
        if (other.level, other.levels) != (self.level, self.levels):
            raise ValueError(
                f"a meter with level={other.level}, levels={other.levels} cannot be added to one with "
                f"level={self.level}, levels={self.levels}"
            )
        self._totals, self._pit = self._totals + other._totals, self._pit + other._pit

    def report(self) -> RegressionReport:
        """Figures of everything so far.

        Raises:
            ValueError: if there was no update.
        """
        elements, examples, squared, surprise, crps, covered, width, score, variance = self._totals.tolist()
        if not elements:
            raise ValueError("the meter has seen no predictions; call update first")
        wanted = torch.arange(1, self.levels + 1, dtype=torch.float64) / (self.levels + 1)
        observed = self._pit.cumsum(0)[:-1].double() / elements
        return RegressionReport(
            count=round(elements),
            level=self.level,
            rmse=math.sqrt(squared / elements),
            nll=surprise / examples,
            crps=crps / elements,
            coverage=covered / elements,
            width=width / elements,
            interval_score=score / elements,
            quantile_calibration_error=float((observed - wanted).abs().mean()),
            sharpness=math.sqrt(variance / elements),
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, for a checkpoint or another process."""
        return {"totals": self._totals.clone(), "pit": self._pit.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace everything by the sums of :meth:`state_dict`, of a meter with the same options.

        Raises:
            ValueError: if they have another number of quantiles.
        """
        if len(state["pit"]) != self.levels + 1:
            raise ValueError(f"these sums have levels={len(state['pit']) - 1}, this meter levels={self.levels}")
        self._totals, self._pit = state["totals"].clone(), state["pit"].clone()


def regression_report(
    mean: Tensor,
    variance: Tensor,
    targets: Tensor,
    *,
    components: Tensor | None = None,
    noise_variance: Tensor | None = None,
    level: float = 0.9,
    levels: int = 99,
    bootstrap: int = 0,
    bootstrap_level: float = 0.95,
    seed: int = 0,
) -> RegressionReport:
    """Every figure about real predictions.

    Args:
        mean, variance, targets, components, noise_variance: see :meth:`RegressionMeter.update`.
        level: probability of the predicted intervals, in (0, 1).
        levels: number of quantiles of the calibration error, >= 1.
        bootstrap: number of replicates for an interval of every figure (the basic one of
            :func:`vogn.metrics.bootstrap_interval`); 0 for none.
        bootstrap_level: of these.
        seed: of these.

    Raises:
        ValueError: see :meth:`RegressionMeter.update` and :func:`vogn.metrics.bootstrap_interval`.

    Example: of a :class:`vogn.Predictive`, ``regression_report(found.mean, found.variance, y,
    components=found.samples, noise_variance=found.aleatoric)``.
    """
    check_replicates(bootstrap)
    check_level(bootstrap_level, "bootstrap_level")

    meter = RegressionMeter(level, levels)
    parts, pit = _by_element(mean, variance, targets, components, noise_variance, level)
    meter._add(parts, pit)
    report = meter.report()
    if not bootstrap:
        return report
    rows = _by_example(parts)

    def values(resampled: Tensor, transforms: Tensor) -> Tensor:
        squared, *others, spread = resampled.mean(0)
        error = quantile_calibration_error(transforms, levels).to(squared)
        return torch.stack([squared.sqrt(), *others, error, spread.sqrt()])

    found = bootstrap_interval(values, rows, pit.cpu(), level=bootstrap_level, replicates=bootstrap, seed=seed)
    names = list(report.figures())
    return RegressionReport(**{**asdict(report), "intervals": plain_intervals(names, found)})


def _by_element(
    mean: Tensor,
    variance: Tensor,
    targets: Tensor,
    components: Tensor | None,
    noise_variance: Tensor | None,
    level: float,
) -> tuple[list[Tensor], Tensor]:
    """What every element (for the NLL, every example) adds to the figures; see :meth:`RegressionMeter.update`.

    Returns:
        In float64 on the CPU: squared error, NLL, CRPS, coverage, width, interval score, variance; and the transforms.
    """
    f, y = real_pair(mean, targets)
    _, v = real_pair(mean, variance, name="variance")
    positive(v)
    if (components is None) != (noise_variance is None):
        raise ValueError("components and noise_variance belong together: give both, or neither for a Gaussian")
    if components is None or noise_variance is None:
        half = math.sqrt(2) * float(torch.erfinv(torch.tensor(level, dtype=torch.float64)))
        low, high = f - half * v.sqrt(), f + half * v.sqrt()
        surprise = gaussian_nll_examples(mean, variance, targets)
        crps, pit = gaussian_crps_elements(mean, variance, targets), gaussian_pit(mean, variance, targets)
    else:
        crps = gaussian_mixture_crps_elements(components, noise_variance, targets)
        pit = gaussian_mixture_pit(components, noise_variance, targets)
        surprise = _mixture_nll_examples(components, noise_variance, targets)
        centres, _ = real_samples(components, targets)
        scale = noise_variance.to(centres).sqrt()
        low, high = (mixture_quantile(0.5 + s * level, centres, scale) for s in (-0.5, 0.5))
    covered = interval_covered_elements(low, high, targets)
    score = interval_score_elements(low, high, targets, level)
    parts = [(y - f).square(), surprise, crps, covered, high - low, score, v]
    return [device_free(part) for part in parts], pit


def _by_example(parts: Sequence[Tensor]) -> Tensor:
    """``(N, 7)``: means of the parts over what stands at each place of the first dimension. Resampling these rows is
    resampling the examples, without measuring them again."""
    return torch.stack([part.reshape(len(part), -1).mean(1) for part in parts], dim=1)


def _mixture_nll_examples(components: Tensor, noise_variance: Tensor, targets: Tensor) -> Tensor:
    """Negative log density of the mixture, of every example; the elements of a row belong together."""
    f, y = real_samples(components, targets)
    v = noise_variance.detach().to(f)
    elements = -0.5 * ((y - f).square() / v + v.log() + math.log(2 * math.pi))
    joint = elements if y.ndim == 1 else elements.sum(-1)
    return math.log(len(f)) - joint.logsumexp(0)
