"""What a prediction returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from vogn.likelihoods import Likelihood


@dataclass(frozen=True)
class Predictive:
    """A predictive distribution on the scale of the observations; for classes, ``mean`` holds the probabilities.

    Args:
        mean: ``(N, ..., K)``; probabilities for class labels, never logits.
        variance: ``(N, ..., K)``. Class labels: variance of the probabilities between weight samples. Real targets:
            variance of the outputs plus the noise.
        samples: ``(S, N, ..., K)``, one entry per weight sample; ``None`` if they were not kept.
        likelihood: the observation model.
        aleatoric: what would remain if the weights were known, on average over the weight samples. Labels: the expected
            entropy in nats, ``(N, ...)``. Real targets: the variance of the noise, ``(N, ..., K)``.
        energy: ``-log sum_k exp(f_k)`` of the outputs, averaged over the weight samples, ``(N, ...)``; ``None`` unless
            the outputs are logits of classes.
        samples_used: number of weight samples that were averaged; 0 where none were drawn.
        standard_error: ``(N, ..., K)``, Monte Carlo standard error of ``mean``: how much it varies between seeds, or
            between ensembles of as many networks (all draws count as independent, members in turn too); ``None`` where
            the weight samples do not tell (``noise="sobol"``, a single one) or there are none.
    """

    mean: Tensor
    variance: Tensor
    samples: Tensor | None
    likelihood: Likelihood
    aleatoric: Tensor
    energy: Tensor | None = None
    samples_used: int = 0
    standard_error: Tensor | None = None

    @property
    def total(self) -> Tensor:
        """The whole uncertainty about an observation. Labels: the entropy of ``mean`` in nats, ``(N, ...)``. Real
        targets: the variance, ``(N, ..., K)``."""
        return self.likelihood.uncertainty(self.mean, self.variance)

    @property
    def epistemic(self) -> Tensor:
        """``total - aleatoric``, >= 0: what knowing the weights would take away. Labels: the mutual information of
        label and weights in nats, ``(N, ...)``. Real targets: the variance of the outputs over the weights,
        ``(N, ..., K)``.

        Source: Depeweg et al. (2018), "Decomposition of Uncertainty in Bayesian Deep Learning".
        """
        return (self.total - self.aleatoric).clamp_min(0.0)

    def interval(self, level: float = 0.9) -> tuple[Tensor, Tensor]:
        """The central interval of probability ``level``, element by element.

        Real targets: of the observations, noise included; with samples the quantiles of the mixture over them, without
        those of a Gaussian with ``mean`` and ``variance``. Labels: of the probabilities, over the weight samples.

        Args:
            level: in (0, 1).

        Returns:
            Lower and upper end, ``(N, ..., K)``.

        Raises:
            ValueError: if the level is out of range, or the probabilities' samples were not kept.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level={level} must lie between 0 and 1, for example 0.9")
        return self.likelihood.interval(level, self.mean, self.variance, self.samples)

    def nll(self, targets: Tensor) -> Tensor:
        """Negative log predictive density of each target, in nats.

        Args:
            targets: observations in the form that the likelihood expects.

        Returns:
            ``(N, ...)``, one value per target. With ``samples`` the exact density of the mixture over weight samples;
            without, what ``mean`` and ``variance`` determine (the same for class labels, a Gaussian for real targets).
        """
        return self.likelihood.nll(
            self.mean, targets.to(self.mean.device), variance=self.variance, samples=self.samples
        )
