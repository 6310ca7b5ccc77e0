"""Averages over weight samples as they come: moments, parts of the uncertainty, Monte Carlo errors, when to stop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from vogn.likelihoods import Likelihood
from vogn.predict.predictive import Predictive

LOOK_EVERY = 8
"""The stopping rule looks after so many independent samples (or pairs), and then after so many samples each time."""

GROUPS: Mapping[str, int | None] = {"independent": 1, "antithetic": 2, "sobol": None}
"""Kind of noise to the number of consecutive weight samples whose average is independent of the next ones'. ``None``:
there are no independent ones, and their scatter does not say how wrong the average is."""


class Moments:
    """Mean and scatter of tensors that come one after the other, by Welford's update."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, value: Tensor) -> None:
        """The next one."""
        self.count += 1
        if self.count == 1:
            self.mean, self._squares = value.clone(), torch.zeros_like(value)
            return
        difference, share = value - self.mean, 1.0 / self.count
        self.mean.add_(difference, alpha=share)
        self._squares.addcmul_(difference, difference, value=1.0 - share)  # value - mean is (1 - share) difference now

    @property
    def variance(self) -> Tensor:
        """Divides by the count."""
        return self._squares / self.count

    @property
    def standard_error(self) -> Tensor | None:
        """Of the mean of independent values; ``None`` for fewer than two."""
        return None if self.count < 2 else (self._squares / (self.count - 1) / self.count).sqrt()


class Average:
    """Running averages over weight samples: the parts of the law of total variance, and what is uncertain at known
    weights.

    Args:
        likelihood: makes a distribution of outputs.
        group: a value of :data:`GROUPS`.
    """

    def __init__(self, likelihood: Likelihood, group: int | None = 1) -> None:
        self.likelihood = likelihood
        self._group = group
        self._points = Moments()
        self._pairs = Moments()
        self._first: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of weight samples so far."""
        return self._points.count

    def add(self, output: Tensor) -> None:
        """The outputs of the next weight sample."""
        mean, variance, _ = self.likelihood.point(output)
        aleatoric, energy = self.likelihood.uncertainty(mean, variance), self.likelihood.free_energy(output)
        self._points.add(mean)
        if self._group == 2:
            self._add_to_pair(mean)
        if self.count == 1:
            self._within, self.aleatoric, self.energy = variance.clone(), aleatoric.clone(), energy
            return
        self._within.lerp_(variance, 1.0 / self.count)
        self.aleatoric.lerp_(aleatoric, 1.0 / self.count)
        if energy is not None and self.energy is not None:
            self.energy = self.energy.lerp(energy, 1.0 / self.count)

    def _add_to_pair(self, mean: Tensor) -> None:
        if self._first is None:
            self._first = mean.clone()
        else:
            self._pairs.add((self._first + mean) / 2)
            self._first = None

    @property
    def mean(self) -> Tensor:
        """Of the mixture."""
        return self._points.mean

    @property
    def variance(self) -> Tensor:
        """Of the mixture."""
        return self._within + self._points.variance

    @property
    def groups(self) -> int:
        """Number of independent averages so far; 0 if there are none."""
        return 0 if self._group is None else (self._points if self._group == 1 else self._pairs).count

    @property
    def standard_error(self) -> Tensor | None:
        """Monte Carlo standard error of :attr:`mean`; ``None`` if there are fewer than two independent averages."""
        if self.groups < 2:
            return None
        return (self._points if self._group == 1 else self._pairs).standard_error

    def settled(self, tolerance: float) -> bool:
        """Every standard error is at most ``tolerance`` times its unit (:meth:`Likelihood.error_unit`); looked at every
        :data:`LOOK_EVERY` samples, with as many independent averages at least."""
        if self.groups < LOOK_EVERY or self.count % LOOK_EVERY:
            return False
        error = self.standard_error
        return error is not None and bool((error <= tolerance * self.likelihood.error_unit(self.variance)).all())


def averaged(
    found: Iterable[Tensor],
    likelihood: Likelihood,
    *,
    samples: int,
    noise: str = "independent",
    tolerance: float | None = None,
    keep_samples: bool = False,
) -> Predictive:
    """The predictive distribution of the mixture over weight samples.

    Args:
        found: outputs ``(N, ..., K)`` of one weight sample after the other.
        likelihood, noise, tolerance, keep_samples: see :func:`vogn.predict.predict`.
        samples: how many there are at most.
    """
    average = Average(likelihood, GROUPS[noise])
    kept: Tensor | None = None
    for output in found:
        if keep_samples:
            kept = output.new_empty((samples, *output.shape)) if kept is None else kept
            kept[average.count] = output
        average.add(output)
        if tolerance is not None and average.settled(tolerance):
            break
    mean, variance, points = average.mean, average.variance, None
    if kept is not None:
        kept = kept if average.count == samples else kept[: average.count].clone()
        mean, variance, points = likelihood.predictive(kept)
    return Predictive(
        mean,
        variance,
        points,
        likelihood,
        average.aleatoric,
        average.energy,
        samples_used=average.count,
        standard_error=average.standard_error,
    )
