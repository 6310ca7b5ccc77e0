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
    """

    mean: Tensor
    variance: Tensor
    samples: Tensor | None
    likelihood: Likelihood

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
