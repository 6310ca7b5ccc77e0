"""One cell: train a method, predict, measure."""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

import vogn
from benchmarks.cells import command, environment, write_cell
from benchmarks.classification.images import Part, parts
from benchmarks.classification.networks import keep_network, network_path
from benchmarks.classification.rows import ROWS, Row
from benchmarks.classification.sizes import Study, sizes, study_name
from benchmarks.classification.tuning import configurations_of
from vogn import metrics
from vogn.data.order import epoch_batches
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.predict import update_batchnorm

PREDICTION_TEMPERATURE = 0.3
"""Where there is no validation part; chosen on the tuning splits of the digits."""
PREDICTION_TEMPERATURES = (0.3, 1.0, 3.0, 10.0)


def schedule(step: int, steps: int) -> float:
    """Linear warm-up over 5 % of the steps, then cosine to zero."""
    warm = max(1, steps // 20)
    return (step + 1) / warm if step < warm else 0.5 * (1.0 + math.cos(math.pi * (step - warm) / (steps - warm)))


def train(
    row: Row,
    configuration: Mapping[str, Any],
    x: Tensor,
    y: Tensor,
    study: Study,
    epochs: int,
    seed: int,
    *,
    classes: int = 10,
) -> tuple[nn.Module, Any, float]:
    """Train a ResNet-8 where ``x`` is; returns the model, the optimizer and the CPU seconds of the loop."""
    torch.manual_seed(seed)
    model = build_model("resnet8", num_classes=classes, in_channels=x.shape[1], width=study.width).to(x.device)
    optimizer = row.build(model, len(x), seed=seed, **configuration)
    rates = [group["lr"] for group in optimizer.param_groups]
    likelihood = Categorical()
    steps = epochs * len(epoch_batches(len(x), study.batch, seed, 0))
    step, start = 0, time.process_time()
    for epoch in range(epochs):
        for indices in epoch_batches(len(x), study.batch, seed, epoch):
            batch = indices.to(x.device)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step, steps)
            optimizer.zero_grad()
            if isinstance(optimizer, vogn.NaturalGradient):
                with optimizer.sampled_params():
                    likelihood(model(x[batch]), y[batch]).backward()
            elif hasattr(optimizer, "sampled_params"):
                with optimizer.sampled_params(train=True):
                    likelihood(model(x[batch]), y[batch]).backward()
            else:
                likelihood(model(x[batch]), y[batch]).backward()
            optimizer.step()
            step += 1
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return model, optimizer, time.process_time() - start


@torch.no_grad()
def predictions(
    row: Row, model: nn.Module, optimizer: Any, x: Tensor, samples: int, calibration_x: Tensor, temperature: float
) -> dict[str, Tensor]:
    """Class probabilities at the mean and, for methods that sample, of the posterior predictive.

    The covariance is multiplied by ``temperature``: the noise that regularises training best need not be the one that
    averages best.

    Batch norm statistics: the running ones for methods without weight noise, computed anew from training images for
    the mean and for every weight sample of the others.
    """
    calibration = list(calibration_x.split(128))
    model.eval()

    def forward(*, recompute: bool) -> Tensor:
        if recompute:
            update_batchnorm(model, calibration)
        return torch.cat([model(part).softmax(-1) for part in x.split(500)])

    out = {"mean": forward(recompute=row.samples)}
    if isinstance(optimizer, vogn.NaturalGradient) and row.samples:
        posterior = optimizer.posterior().tempered(temperature)
        out["posterior"] = vogn.predict(
            model, posterior, x, samples=samples, keep_samples=False, calibration=calibration
        ).mean
    elif row.samples:
        total = torch.zeros_like(out["mean"])
        sizes_before = [group["ess"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["ess"] /= temperature
        for _ in range(samples):
            with optimizer.sampled_params():
                total += forward(recompute=True)
        for group, ess in zip(optimizer.param_groups, sizes_before, strict=True):
            group["ess"] = ess
        out["posterior"] = total / samples
    return out


def prediction_temperature(
    row: Row, model: nn.Module, optimizer: Any, validation: Part, samples: int, calibration_x: Tensor
) -> float | None:
    """The temperature with the lowest NLL on the validation part; none for methods that do not sample."""
    x, y = validation
    if not row.samples or len(x) == 0:
        return PREDICTION_TEMPERATURE if row.samples else None

    def loss(temperature: float) -> float:
        found = predictions(row, model, optimizer, x, samples, calibration_x, temperature)
        return measure(found["posterior"], y)["nll"]

    return min(PREDICTION_TEMPERATURES, key=loss)


def measure(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """Accuracy, NLL, Brier score and ECE."""
    probabilities, labels = probabilities.cpu(), labels.cpu()
    return {name: float(getattr(metrics, name)(probabilities, labels)) for name in ("accuracy", "nll", "brier", "ece")}


def device_of(x: Tensor) -> dict[str, str]:
    """What the machine is beside its processor, for the record."""
    return {"device": torch.cuda.get_device_name(x.device)} if x.is_cuda else {}


def run_cell(arguments: argparse.Namespace) -> None:
    """Train and measure one (method, configuration, seed)."""
    study, row = sizes(arguments), ROWS[arguments.method]
    configuration = configurations_of(arguments, arguments.method)[arguments.configuration]
    tuning = arguments.tuning
    study = replace(study, tune_train=study.train) if row.at_size else study
    found = parts(arguments.data, arguments.data_dir, study, arguments.seed, tuning=tuning)
    (x, y), validation, (x_test, y_test) = (
        (images.to(arguments.device), labels.to(arguments.device)) for images, labels in found
    )
    epochs = arguments.epochs or (study.tune_epochs if tuning else study.epochs)
    model, optimizer, seconds = train(row, configuration, x, y, study, epochs, arguments.seed)
    natural = isinstance(optimizer, vogn.NaturalGradient)
    if arguments.networks and not tuning:
        name = study_name(arguments.data, full=arguments.full)
        path = network_path(arguments.networks, name, arguments.method, arguments.seed)
        keep_network(path, model, optimizer.posterior() if natural and row.samples else None)
    calibration = x[: study.calibration]
    temperature = prediction_temperature(row, model, optimizer, validation, study.samples // 2, calibration)
    probabilities = predictions(row, model, optimizer, x_test, study.samples, calibration, temperature or 1.0)
    record = {
        "method": arguments.method,
        "data": arguments.data,
        "configuration": configuration,
        "seed": arguments.seed,
        "tuning": tuning,
        "epochs": epochs,
        "train": len(x),
        "held_out": len(x_test),
        "samples": study.samples if row.samples else 0,
        "prediction_temperature": temperature,
        "cpu_seconds": round(seconds, 2),
        "command": command("benchmarks.classification"),
        "environment": environment() | device_of(x),
        **{kind: measure(p, y_test) for kind, p in probabilities.items()},
    }
    best = probabilities.get("posterior", probabilities["mean"])
    if not tuning:
        nll = -best[torch.arange(len(y_test)), y_test].clamp_min(1e-30).log()
        record["per_example_nll"] = [round(float(v), 5) for v in nll] if arguments.data == "digits" else []
    write_cell(arguments.cell, record)
