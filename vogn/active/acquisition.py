"""The one protocol: which examples of a pool to ask about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vogn.active.candidates import Candidates
from vogn.likelihoods import Likelihood
from vogn.predict import Predictive

LABELS, NUMBERS = "labels", "numbers"
"""What is asked for: one label of a class (categorical, Bernoulli), or real numbers (Gaussian)."""


def target_kind(likelihood: Likelihood) -> str:
    """:data:`NUMBERS` for real targets, else :data:`LABELS`."""
    return NUMBERS if likelihood.kind == "gaussian" else LABELS


@dataclass(frozen=True)
class Selection:
    """A choice, best example first.

    Args:
        indices: numbers in the pool, ``(b,)``, int64.
        scores: of each, ``(b,)``, float64; for batch acquisitions the gain over those before it.
        exact: for batch acquisitions, whether the greedy choice is certainly that of the whole pool.
    """

    indices: Tensor
    scores: Tensor
    exact: bool = True


class Acquisition(ABC):
    """A rule that chooses examples.

    Class attributes:
        KINDS: of targets that it is meant for.
    """

    KINDS: ClassVar[frozenset[str]] = frozenset({LABELS, NUMBERS})

    @abstractmethod
    def select(self, candidates: Candidates, count: int) -> Selection:
        """Choose examples.

        Args:
            candidates: at least one.
            count: how many, >= 1; all if there are fewer.
        """

    def check(self, likelihood: Likelihood) -> None:
        """Raise unless the rule is meant for this observation model.

        Raises:
            ValueError: naming what it is meant for.
        """
        kind = target_kind(likelihood)
        if kind not in self.KINDS:
            other = "information_gain" if kind == NUMBERS else "bald"
            raise ValueError(
                f"{type(self).__name__} is meant for {' or '.join(sorted(self.KINDS))}, not for {likelihood!r}; use "
                f"{other!r}"
            )


class Pointwise(Acquisition):
    """A score of each example by itself; the largest are chosen. One pass over the pool."""

    SAMPLES: ClassVar[bool] = False
    """Whether the score needs the predictions of every weight sample, or averages over them will do."""

    @abstractmethod
    def score(self, found: Predictive) -> Tensor:
        """One number per example, ``(n,)``."""

    def prepare(self, candidates: Candidates) -> None:  # noqa: B027
        """What must be known before the first example."""

    def scores(self, candidates: Candidates) -> list[tuple[Tensor, Tensor]]:
        """Pieces of (numbers ``(n,)``, scores ``(n,)``) of all candidates."""
        self.prepare(candidates)
        return [(n, self.score(found)) for n, found in candidates.predictions(keep_samples=self.SAMPLES)]

    def select(self, candidates: Candidates, count: int) -> Selection:
        """See :meth:`Acquisition.select`."""
        return Selection(*candidates.chosen(self.scores(candidates), count))


def averaged_probabilities(found: Predictive) -> Tensor:
    """Class probabilities ``(1, n, C)`` of a predictive distribution.

    Raises:
        ValueError: if there is not one label per example.
    """
    return classes(found.mean, found.likelihood).unsqueeze(0)


def sampled_probabilities(found: Predictive) -> Tensor:
    """Class probabilities of every weight sample, ``(S, n, C)``.

    Raises:
        ValueError: if there is not one label per example, or no samples were drawn.
    """
    return classes(sampled(found), found.likelihood)


def sampled(found: Predictive) -> Tensor:
    """The predictions of every weight sample.

    Raises:
        ValueError: if none were drawn.
    """
    if found.samples is None:
        raise ValueError("this acquisition needs weight samples: predict with method='mc', or with link='mc'")
    return found.samples


def classes(probabilities: Tensor, likelihood: Likelihood) -> Tensor:
    """``(..., n, C)``; the probability of a binary label becomes two.

    Raises:
        ValueError: if there is not one label per example.
    """
    if likelihood.kind == "bernoulli":
        one = probabilities.squeeze(-1) if probabilities.shape[-1] == 1 and probabilities.ndim > 1 else probabilities
        return torch.stack([1.0 - one, one], -1)
    return probabilities
