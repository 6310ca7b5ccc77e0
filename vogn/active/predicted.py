"""Candidates whose predictions another program has made."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vogn.active.candidates import Candidates
from vogn.active.scores import check_samples, label_entropy
from vogn.likelihoods import Categorical, Gaussian, Likelihood
from vogn.predict import Predictive


class PredictedCandidates(Candidates):
    """Predictions of weight samples, the same samples for all examples.

    Acquisitions that look at the network itself (``core_set``) cannot use them.

    Args:
        samples: class probabilities ``(S, N, C)``, or with a noise the outputs ``(S, N, K)``.
        noise: standard deviation of an observation, > 0; ``None``: these are class probabilities.
        targets: the same where predictions matter, ``(S, M, C)``; ``None``: some of the examples themselves.
        seed: of everything random in the choice.

    Raises:
        ValueError: for another shape, NaN, or numbers that are no probabilities.
    """

    def __init__(
        self, samples: Tensor, *, noise: float | None = None, targets: Tensor | None = None, seed: int = 0
    ) -> None:
        for name, values in (("predictions", samples), ("target predictions", targets)):
            if values is not None:
                check_samples(values, name, probabilities=noise is None)
        self._values, self._noise, self._targets = samples, noise, targets
        self.likelihood: Likelihood = Categorical() if noise is None else Gaussian(noise)
        self.seed = seed
        self.open = torch.arange(samples.shape[1])
        self.pool = range(samples.shape[1])  # type: ignore[assignment]
        self.known = None

    def predictions(self, *, keep_samples: bool = False) -> Iterator[tuple[Tensor, Predictive]]:
        """See :meth:`Candidates.predictions`."""
        yield self.open, self._predictive(self._values)

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """There are no inputs.

        Raises:
            ValueError: always.
        """
        raise ValueError("this acquisition looks at inputs and network; use it with ActiveLearner")

    def target_predictions(self, count: int) -> Predictive:
        """See :meth:`Candidates.target_predictions`."""
        return self._predictive(self._values[:, self.some(count)] if self._targets is None else self._targets)

    def _predictive(self, values: Tensor) -> Predictive:
        mean, spread = values.mean(0), values.var(0, correction=0)
        if self._noise is None:
            return Predictive(mean, spread, values, self.likelihood, label_entropy(values).mean(0))
        aleatoric = torch.full_like(mean, self._noise**2)
        return Predictive(mean, spread + aleatoric, values, self.likelihood, aleatoric)
