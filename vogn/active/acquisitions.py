"""The acquisitions: one row each. Learner, command line, tests and documentation iterate this table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vogn.active import scores
from vogn.active.acquisition import (
    LABELS,
    NUMBERS,
    Acquisition,
    Pointwise,
    Selection,
    averaged_probabilities,
    sampled,
    sampled_probabilities,
    target_kind,
)
from vogn.active.batch_acquisitions import BatchBALD, BatchInformationGain, CoreSet
from vogn.active.candidates import Candidates
from vogn.active.epig import epig, gaussian_epig
from vogn.predict import Predictive


class Random(Acquisition):
    """Every open example with equal probability: the baseline. Reads no inputs."""

    def select(self, candidates: Candidates, count: int) -> Selection:
        """See :meth:`Acquisition.select`."""
        numbers = candidates.open
        return Selection(*candidates.chosen([(numbers, torch.zeros(len(numbers)))], count))


class Entropy(Pointwise):
    """:func:`vogn.active.entropy`."""

    KINDS = frozenset({LABELS})

    def score(self, found: Predictive) -> Tensor:
        """See :meth:`Pointwise.score`."""
        return scores.entropy(averaged_probabilities(found))


class Margin(Pointwise):
    """:func:`vogn.active.margin`."""

    KINDS = frozenset({LABELS})

    def score(self, found: Predictive) -> Tensor:
        """See :meth:`Pointwise.score`."""
        return scores.margin(averaged_probabilities(found))


class VariationRatio(Pointwise):
    """:func:`vogn.active.variation_ratio`."""

    KINDS = frozenset({LABELS})

    def score(self, found: Predictive) -> Tensor:
        """See :meth:`Pointwise.score`."""
        return scores.variation_ratio(averaged_probabilities(found))


class BALD(Pointwise):
    """:func:`vogn.active.bald`."""

    KINDS = frozenset({LABELS})

    def score(self, found: Predictive) -> Tensor:
        """See :meth:`Pointwise.score`."""
        return found.epistemic.reshape(len(found.mean))


class MeanDeviation(Pointwise):
    """:func:`vogn.active.mean_deviation`."""

    KINDS = frozenset({LABELS})
    SAMPLES = True

    def score(self, found: Predictive) -> Tensor:
        """See :meth:`Pointwise.score`."""
        return scores.mean_deviation(sampled_probabilities(found))


class PredictiveVariance(Pointwise):
    """:func:`vogn.active.predictive_variance`."""

    KINDS = frozenset({NUMBERS})

    def score(self, found: Predictive) -> Tensor:
        """See :meth:`Pointwise.score`."""
        return scores.predictive_variance(found.epistemic.reshape(len(found.mean), -1))


class InformationGain(Pointwise):
    """:func:`vogn.active.information_gain`."""

    KINDS = frozenset({NUMBERS})

    def score(self, found: Predictive) -> Tensor:
        """See :meth:`Pointwise.score`."""
        shape = (len(found.mean), -1)
        return scores.information_gain(found.epistemic.reshape(shape), found.aleatoric.reshape(shape))


class EPIG(Pointwise):
    """:func:`vogn.active.epig`, for real targets :func:`vogn.active.gaussian_epig`.

    Args:
        count: target inputs where the learner has none: as many of the pool, at random, >= 1.
    """

    SAMPLES = True

    def __init__(self, count: int = 100) -> None:
        if count < 1:
            raise ValueError(f"count={count} target inputs; at least 1 is needed")
        self.count = count
        self._targets: Tensor | None = None

    def prepare(self, candidates: Candidates) -> None:
        """See :meth:`Pointwise.prepare`."""
        found = candidates.target_predictions(self.count)
        numbers = target_kind(candidates.likelihood) == NUMBERS
        self._targets = _outputs(found) if numbers else sampled_probabilities(found)

    def score(self, found: Predictive) -> Tensor:
        """See :meth:`Pointwise.score`."""
        assert self._targets is not None
        if target_kind(found.likelihood) == LABELS:
            return epig(sampled_probabilities(found), self._targets)
        outputs = _outputs(found)
        noise = found.aleatoric.reshape(len(found.mean), -1)[0]
        return gaussian_epig(outputs, self._targets, noise)


def _outputs(found: Predictive) -> Tensor:
    """``(S, n, K)``."""
    outputs = sampled(found)
    return outputs.reshape(*outputs.shape[:2], -1)


@dataclass(frozen=True)
class AcquisitionInfo:
    """A row.

    Args:
        build: makes it.
        summary: one line for tables.
        cost: beside the predictions, for ``N`` examples, ``S`` weight samples, ``C`` classes, batches of ``b``.
    """

    build: Callable[..., Acquisition]
    summary: str
    cost: str

    @property
    def kinds(self) -> frozenset[str]:
        """Of targets that it is meant for."""
        return self.build.KINDS  # type: ignore[attr-defined]


ACQUISITIONS: dict[str, AcquisitionInfo] = {
    "random": AcquisitionInfo(Random, "every example with equal probability", "no predictions"),
    "entropy": AcquisitionInfo(Entropy, "most uncertain label, for any reason", "N C"),
    "margin": AcquisitionInfo(Margin, "the two likeliest labels are closest", "N C"),
    "variation_ratio": AcquisitionInfo(VariationRatio, "the likeliest label is least likely", "N C"),
    "mean_deviation": AcquisitionInfo(MeanDeviation, "probabilities vary most over weight samples", "S N C"),
    "bald": AcquisitionInfo(BALD, "the label tells most about the weights", "S N C"),
    "batchbald": AcquisitionInfo(BatchBALD, "the labels of the batch together do", "up to b J S C per kept example"),
    "epig": AcquisitionInfo(EPIG, "the label tells most about predictions at target inputs", "S N M C^2"),
    "variance": AcquisitionInfo(PredictiveVariance, "outputs vary most over weight samples", "N"),
    "information_gain": AcquisitionInfo(InformationGain, "an observation tells most about the weights", "N"),
    "batch_information_gain": AcquisitionInfo(
        BatchInformationGain, "the observations of the batch together do", "b N S^2"
    ),
    "core_set": AcquisitionInfo(CoreSet, "the batch covers the pool in feature space", "N n F + b N F"),
}


def acquisition_of(acquisition: str | Acquisition, **options: Any) -> Acquisition:
    """An acquisition as it is, or the one of that name.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(acquisition, Acquisition):
        return acquisition
    if acquisition not in ACQUISITIONS:
        raise ValueError(f"acquisition={acquisition!r} is unknown; choose one of {', '.join(ACQUISITIONS)}")
    return ACQUISITIONS[acquisition].build(**options)


__all__ = [
    "ACQUISITIONS",
    "AcquisitionInfo",
    "BALD",
    "EPIG",
    "Entropy",
    "InformationGain",
    "Margin",
    "MeanDeviation",
    "PredictiveVariance",
    "Random",
    "VariationRatio",
    "acquisition_of",
]
