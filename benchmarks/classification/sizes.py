"""How large the studies are, and where their cells lie."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "classification"


@dataclass(frozen=True)
class Study:
    """Sizes of one study.

    Args:
        train, test: numbers of images; 0 takes all.
        epochs: of the final runs.
        tune_train, tune_validation, tune_epochs: sizes of the tuning runs.
        seeds: paired seeds, or folds.
        tune_splits: disjoint parts of the training images that tuning averages over; digits tune in every fold.
        samples: weight samples of the posterior predictive.
        validation: training images outside the training part, on which a run chooses the temperature of prediction.
        calibration: training images from which batch norm statistics are computed anew for every weight sample.
    """

    train: int
    test: int
    epochs: int
    tune_train: int
    tune_validation: int
    tune_epochs: int
    seeds: int = 5
    samples: int = 32
    width: int = 16
    batch: int = 64
    validation: int = 0
    calibration: int = 1024
    tune_splits: int = 1


FULL = {
    "digits": Study(0, 0, 30, 0, 0, 30),
    "mnist": Study(12000, 0, 6, 6000, 2000, 6, samples=16, validation=1000),
    "cifar10": Study(12000, 0, 12, 6000, 2000, 12, samples=16, validation=1000),
}
REDUCED = {
    "digits": Study(0, 0, 30, 0, 0, 30),
    "mnist": Study(3000, 2000, 6, 1500, 500, 6, samples=16, batch=32, validation=500, calibration=256, tune_splits=4),
    "cifar10": Study(
        2000, 2000, 12, 1000, 500, 12, samples=16, batch=32, validation=500, calibration=256, tune_splits=4
    ),
}


def sizes(arguments: argparse.Namespace) -> Study:
    """The study's sizes."""
    study = (FULL if arguments.full else REDUCED)[arguments.data]
    study = replace(study, seeds=arguments.seeds) if arguments.seeds else study
    return replace(study, epochs=arguments.horizon) if arguments.horizon else study


def study_name(data: str, *, full: bool) -> str:
    """Name of a study: of its data, with ``-full`` for its full form."""
    return data + ("-full" if full else "")


def folder(arguments: argparse.Namespace, part: str = "") -> Path:
    """Where this study's cells are; ``"tuning"`` is shared by all horizons."""
    name = study_name(arguments.data, full=arguments.full)
    if arguments.horizon and part != "tuning":
        name += f"-{arguments.horizon}-epochs"
    return Path(arguments.results / name / part)
