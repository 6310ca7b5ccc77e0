"""Figures that a person can act on, at the mean weights and averaged over the posterior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from vogn.cli.errors import DivergedError
from vogn.cli.session import Session
from vogn.cli.task import Evaluation, Scores
from vogn.data import Split
from vogn.posterior import GaussianPosterior
from vogn.predict import BatchNormCalibration, Predictive, predict

_BATCH = 512
_CALIBRATION = 1024
_VALIDATION = 1000
_SAMPLES = 16
TEMPERATURES = (0.3, 1.0, 3.0, 10.0)
"""Factors on the posterior's covariance among which the validation part chooses."""


def posterior(session: Session) -> GaussianPosterior:
    """The trained posterior at the temperature of prediction.

    That temperature is the one asked for, or the one in ``prediction.json``, or the one of :data:`TEMPERATURES` with
    the lowest NLL on (at most 1000 examples of) the validation part, which is then written there; one whose predictions
    are not finite is not chosen, and its NLL is written as ``null``.

    Raises:
        DivergedError: the predictions are not finite at any of them.
    """
    trained = session.posterior()
    asked = session.settings.prediction_temperature
    if asked is not None:
        return trained.tempered(asked)
    if not trained.sampled_blocks or len(session.data.validation) == 0:
        return trained
    stored = session.folder.read_prediction()
    if stored is None or stored["position"] != asdict(session.position):
        held_out = session.data.validation
        part = Split(held_out.x[:_VALIDATION], held_out.y[:_VALIDATION])
        y = session.task.targets(part)
        found = {}
        for temperature in TEMPERATURES:
            tempered = trained.tempered(temperature)
            inputs = calibration(session, sampled=bool(tempered.sampled_blocks))
            predictions = _predictive(session, tempered, part.x, samples=_SAMPLES, calibration=inputs)
            if _is_finite(predictions):
                found[temperature] = session.task.scores(predictions, y).nll
        if not found:
            raise _not_finite(session)
        best = min(found, key=lambda temperature: found[temperature])
        stored = {
            "temperature": best,
            "validation_nll": {str(temperature): found.get(temperature) for temperature in TEMPERATURES},
            "position": asdict(session.position),
        }
        session.folder.write_json("prediction.json", stored)
    return trained.tempered(float(stored["temperature"]))


def predictive(session: Session, x: Tensor, *, samples: int | None) -> Predictive:
    """Predictions with the mean weights (``samples=None``) or averaged over that many weight samples."""
    return predictor(session, samples=samples)(x)


def predictor(session: Session, *, samples: int | None) -> Callable[[Tensor], Predictive]:
    """A function from inputs to :func:`predictive`, which builds the posterior and estimates batch norm once.

    Raises:
        DivergedError: from the function, if predictions are not finite.
    """
    weights = session.posterior() if samples is None else posterior(session)
    inputs = calibration(session, sampled=samples is not None and bool(weights.sampled_blocks))
    shared = None if inputs is None else BatchNormCalibration(inputs)

    def predictions(x: Tensor) -> Predictive:
        found = _predictive(session, weights, x, samples=samples, calibration=shared)
        _require_finite(session, found)
        return found

    return predictions


def _is_finite(found: Predictive) -> bool:
    return bool(torch.isfinite(found.mean).all() and torch.isfinite(found.variance).all())


def _require_finite(session: Session, found: Predictive) -> None:
    if not _is_finite(found):
        raise _not_finite(session)


def _not_finite(session: Session) -> DivergedError:
    return DivergedError(
        f"the predictions of {session.contender.label} are not finite: its training diverged, or the temperature "
        "of prediction is too high; lower --lr or raise --prior-precision"
    )


def _predictive(
    session: Session, weights: GaussianPosterior, x: Tensor, *, samples: int | None, calibration: Any
) -> Predictive:
    found = predict(
        session.model,
        weights,
        x,
        method="mean" if samples is None else "mc",
        samples=1 if samples is None else samples,
        likelihood=session.observation.likelihood,
        calibration=calibration,
        batch_size=_BATCH,
        seed=session.settings.seed,
        keep_samples=session.task.KEEPS_SAMPLES,
    )
    return session.task.predicted(found)


def calibration(session: Session, *, sampled: bool) -> list[Tensor] | None:
    """Training images for the batch norm statistics of every weight sample; ``None`` keeps the running statistics.

    Batches are those of training, so that the statistics are what the network saw. Training without weight noise left
    running statistics that fit the mean weights, so these keep them, as everybody's do.

    Args:
        session: the run.
        sampled: whether the prediction is averaged over weight samples.
    """
    if not (sampled or session.contender.samples_weights):
        return None
    return list(session.data.train.x[:_CALIBRATION].split(session.settings.batch_size))


def evaluate(session: Session, split: Split, *, samples: int, with_posterior: bool = True) -> list[Evaluation]:
    """Figures at the mean and, unless told otherwise, of the posterior predictive."""
    ways: dict[str, int | None] = {"mean": None}
    if with_posterior:
        ways[f"{samples} samples"] = samples
    rows, targets = [], session.task.targets(split)
    for how, count in ways.items():
        found = predictive(session, split.x, samples=count)
        scores = session.task.scores(found, targets)
        rows.append(Evaluation(session.contender.label, how, scores, found, targets))
    return rows


def mean_scores(session: Session, split: Split) -> Scores:
    """Figures of the network as it stands, between two epochs: no posterior is built."""
    point = GaussianPosterior([], {name: value.detach() for name, value in session.model.named_parameters()})
    found = session.task.predicted(
        predict(
            session.model,
            point,
            split.x,
            method="mean",
            samples=1,
            likelihood=session.observation.likelihood,
            calibration=calibration(session, sampled=False),
            batch_size=_BATCH,
        )
    )
    _require_finite(session, found)
    return session.task.scores(found, session.task.targets(split))
