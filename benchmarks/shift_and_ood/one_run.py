"""One cell: train a method on a task, predict on known, strange and worse images, measure."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import vogn
from benchmarks.cells import command, environment, write_cell
from benchmarks.classification.networks import kept_network, network_path
from benchmarks.classification.one_run import PREDICTION_TEMPERATURES, train
from benchmarks.classification.rows import ROWS
from benchmarks.classification.sizes import RESULTS as CLASSIFICATION
from benchmarks.classification.sizes import Study, study_name
from benchmarks.shift_and_ood.images import FULL, TASKS, images_of
from vogn import metrics
from vogn.data import CORRUPTIONS, corrupt
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.posterior import Posterior

METHODS = ("adamw", "kfac", "ekfac", "ekfac-factored", "vogn", "ivon")
SAMPLES, SHIFT_SAMPLES, VALIDATION_SAMPLES, CALIBRATION = 16, 8, 8, 256
SEVERITIES = (1, 3, 5)

Predictor = Callable[..., vogn.Predictive]


def classification_cell(method: str, data: str, seed: int) -> Path:
    """The committed final run of the classification study ``data``."""
    return CLASSIFICATION / data / "final" / f"{method}-{seed}.json"


def tuned_methods(data: str) -> list[str]:
    """Those that the classification study ``data`` has tuned."""
    return [method for method in METHODS if classification_cell(method, data, 0).exists()]


def tuned_configuration(method: str, data: str, seed: int) -> dict[str, Any]:
    """What the classification study ``data`` chose, from its committed cell."""
    return dict(json.loads(classification_cell(method, data, seed).read_text())["configuration"])


def predictors(
    model: torch.nn.Module, posterior: Posterior | None, train_x: Tensor, validation: tuple[Tensor, Tensor]
) -> tuple[dict[str, Predictor], float | None]:
    """Name to a function of images, and the temperature of prediction: the mean weights, and with a posterior its
    predictive at the temperature with the lowest NLL on the validation part.

    Batch norm statistics are as in the classification study: running ones without a posterior, else computed anew.
    """
    if posterior is None:
        point = vogn.Point(model, likelihood=Categorical())
        return {"mean": lambda x, samples=1: vogn.predict(model, point, x, method="mean")}, None
    # batches of 128, as in the classification study
    shared = {"likelihood": Categorical(), "keep_samples": False}
    inputs = train_x[:CALIBRATION]
    calibrations = {t: vogn.BatchNormCalibration(inputs, batch_size=128) for t in PREDICTION_TEMPERATURES}

    def averaged(x: Tensor, samples: int = SAMPLES, temperature: float = 1.0) -> vogn.Predictive:
        weights = posterior.tempered(temperature)
        return vogn.predict(model, weights, x, samples=samples, calibration=calibrations[temperature], **shared)

    at_mean = vogn.BatchNormCalibration(inputs, batch_size=128)

    def mean(x: Tensor, samples: int = 1) -> vogn.Predictive:
        return vogn.predict(model, posterior, x, method="mean", calibration=at_mean, **shared)

    def loss(temperature: float) -> float:
        found = averaged(validation[0], VALIDATION_SAMPLES, temperature)
        return float(metrics.nll(found.mean, validation[1]))

    best = min(PREDICTION_TEMPERATURES, key=loss)
    return {"mean": mean, "posterior": lambda x, samples=SAMPLES: averaged(x, samples, best)}, best


def quality(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL, Brier score, ECE and AURC."""
    names = ("accuracy", "nll", "brier", "ece", "aurc")
    return {name: round(float(getattr(metrics, name)(probabilities, labels)), 6) for name in names}


def run_cell(arguments: argparse.Namespace) -> None:
    """Train and measure one (task, method, seed)."""
    task, method, seed = (FULL if arguments.full else TASKS)[arguments.task], arguments.method, arguments.seed
    begun = time.process_time()
    images = images_of(task, arguments.data_dir)
    x, y = images.train
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)

    def standardised(raw: Tensor) -> Tensor:
        return (raw - mean) / std

    data = study_name(task.data, full=arguments.full)
    configuration = tuned_configuration(method, data, seed)
    study = Study(len(x), len(images.test[1]), task.epochs, 0, 0, 0, batch=task.batch)
    posterior, seconds = None, None
    if task.known is None and arguments.networks:
        model = build_model("resnet8", num_classes=task.classes, in_channels=x.shape[1], width=study.width)
        posterior = kept_network(network_path(arguments.networks, data, method, seed), model)
    else:
        model, optimizer, seconds = train(
            ROWS[method], configuration, standardised(x), y, study, task.epochs, seed, classes=task.classes
        )
        posterior = optimizer.posterior() if ROWS[method].samples else None
    ways, temperature = predictors(
        model, posterior, standardised(x), (standardised(images.validation[0]), images.validation[1])
    )
    record = {
        "task": arguments.task,
        "method": method,
        "seed": seed,
        "configuration": configuration,
        "prediction_temperature": temperature,
        "epochs": task.epochs,
        "n": {
            "train": len(x),
            "validation": len(images.validation[1]),
            "test": len(images.test[1]),
            "corrupted": task.corrupted,
            **{name: len(labels) for name, (_, labels) in images.outside.items()},
        },
        "samples": SAMPLES if ROWS[method].samples else 0,
        "shift_samples": SHIFT_SAMPLES if ROWS[method].samples else 0,
        "training_cpu_seconds": None if seconds is None else round(seconds, 2),
        "command": command("benchmarks.shift_and_ood"),
        "environment": environment(),
    }
    for way, predict in ways.items():
        inside = predict(standardised(images.test[0]))
        scores = vogn.ood_scores(inside)
        found: dict[str, Any] = {"test": quality(inside.mean, images.test[1]), "outside": {}}
        for name, (strange, labels) in images.outside.items():
            outside = predict(standardised(strange))
            entry: dict[str, Any] = metrics.ood_report(scores, vogn.ood_scores(outside)).to_dict()["scores"]
            if bool((labels >= 0).all()):
                entry = entry | {"quality": quality(outside.mean, labels)}
            found["outside"][name] = entry
        if task.corrupted:
            found["corruptions"] = shifted(predict, standardised, images.test, task.corrupted, seed)
        record[way] = found
    record["cpu_seconds"] = round(time.process_time() - begun, 2)
    write_cell(arguments.cell, record)


def shifted(
    predict: Predictor, standardised: Callable[[Tensor], Tensor], test: tuple[Tensor, Tensor], count: int, seed: int
) -> dict[str, list[dict[str, float]]]:
    """Corruption to quality at severity 0 and every one of :data:`SEVERITIES`, all on the same images."""
    x, y = test[0][:count], test[1][:count]
    clean = quality(predict(standardised(x), samples=SHIFT_SAMPLES).mean, y)
    found = {}
    for name in CORRUPTIONS:
        worse = [standardised(corrupt(x, name, severity, seed=seed)) for severity in SEVERITIES]
        means = predict(torch.cat(worse), samples=SHIFT_SAMPLES).mean.split(count)
        found[name] = [clean, *(quality(part, y) for part in means)]
    return found


def cell_path(root: Path, task: str, method: str, seed: int) -> Path:
    """Where a cell is."""
    return root / task / f"{method}-{seed}.json"
