"""One run, and the search that may precede it."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import vogn
from benchmarks.auto_settings.sizes import FOLDS, HELD_OUT, SIZES, Found
from benchmarks.classification.images import parts
from benchmarks.classification.one_run import measure, predictions, schedule
from benchmarks.classification.rows import EVERY, ROWS
from vogn.cli.contenders import RECIPES
from vogn.data import epoch_batches
from vogn.likelihoods import Categorical, Gaussian
from vogn.models import build_model

STEPS, HIDDEN, BATCH, SAMPLES = 2000, 50, 32, 32
PREDICTION_TEMPERATURE = 0.3
SET = "lr", "damping", "ess_factor"
"""What a search chooses."""


def loop(
    model: nn.Module,
    optimizer: vogn.NaturalGradient,
    likelihood: Any,
    data: tuple[Tensor, Tensor],
    *,
    epochs: int,
    batch: int,
    seed: int,
    tuner: vogn.PriorTuner | None = None,
    noise: torch.optim.Optimizer | None = None,
) -> None:
    """Train with warm-up and cosine decay; ``noise`` optimises the likelihood's own parameters."""
    (x, y), rates, step = data, [group["lr"] for group in optimizer.param_groups], 0
    steps = epochs * len(epoch_batches(len(x), batch, seed, 0))
    for epoch in range(epochs):
        for indices in epoch_batches(len(x), batch, seed, epoch):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * schedule(step, steps)
            optimizer.zero_grad()
            if noise is not None:
                noise.zero_grad()
            with optimizer.sampled_params():
                likelihood(model(x[indices]), y[indices]).backward()
            optimizer.step()
            if noise is not None:
                noise.step()
            if tuner is not None:
                tuner.step()
            step += 1


def search(
    optimizer: vogn.NaturalGradient,
    model: nn.Module,
    likelihood: Any,
    data: tuple[Tensor, Tensor],
    batch: int,
    seed: int,
    steps: int,
    training_steps: int,
    images: bool = False,
    known: Found | None = None,
) -> Found:
    """Learning rate and damping of a search that trains on four fifths of the data and compares on the rest; the run
    has all of them again. The longer runs of the search take ``training_steps``. For images they are made on three of
    five folds, and a search for the factor of ``ess`` follows on the other two.

    Args:
        known: what an earlier search has found, which is not searched again.
    """
    torch.manual_seed(seed)
    order = torch.randperm(len(data[0]))
    count, folds = len(order) // HELD_OUT, []
    for k in range(HELD_OUT if images else 1):
        low, high = k * count, (k + 1) * count
        split = torch.cat([order[:low], order[high:]]), order[low:high]
        inside, outside = (TensorDataset(*(tensor[part] for tensor in data)) for part in split)
        folds.append((DataLoader(inside, batch_size=batch, shuffle=True), DataLoader(outside, batch_size=256)))
    chosen = dict(known or {})
    if "lr" not in chosen:
        (loader, held_out), *further = folds[:FOLDS]
        found = vogn.damping_search(
            optimizer,
            model,
            likelihood,
            loader,
            held_out=held_out,
            further=further,
            steps=steps,
            longer=training_steps / steps,
        )
        tests = [
            [damping, None if test is None else {"lr": test.suggestion, "loss": float(np.mean(test.final))}]
            for damping, test in found.tests
        ]
        finals = found.to_dict()["finals"]
        chosen |= {"lr": found.suggestion, "damping": found.damping, "tests": tests, "finals": finals}
    if images and "ess_factor" not in chosen:
        set_groups(optimizer, chosen)
        (loader, held_out), *further = folds[FOLDS:]
        colder = vogn.temperature_search(
            optimizer, model, likelihood, loader, held_out=held_out, further=further, steps=training_steps
        )
        chosen |= {"ess_factor": colder.factor, "ess_factors": colder.to_dict()["trials"]}
    return chosen


def set_groups(optimizer: vogn.NaturalGradient, chosen: Found) -> None:
    """Learning rate and damping of every group, as far as they are chosen."""
    for group in optimizer.param_groups:
        group.update({key: chosen[key] for key in ("lr", "damping") if key in chosen})


def automatic(method: str, model: nn.Module, loader: DataLoader[Any], seed: int) -> vogn.NaturalGradient:
    """The optimizer of a residual network, with everything automatic but the rate and the prior of the head."""
    recipe = RECIPES[method]
    ess = vogn.effective_sample_size(loader, temperature=recipe.temperature)
    options = {key: value for key, value in recipe.options.items() if key != "lr"} | EVERY
    return vogn.METHODS[method].build(
        model,
        ess=ess,
        weight_decay=recipe.prior_precision / ess,
        initial_curvature="auto",
        seed=seed,
        groups=[{"params": list(model.classifier.parameters())}],
        **options,
    )


def classify(
    name: str,
    method: str,
    split: int,
    seed: int,
    directory: Path,
    configuration: Found | None,
    searched: Found | None = None,
) -> Found:
    """One run of a residual network; ``configuration=None`` is "auto", with what was ``searched`` if that is known.

    Args:
        split: of digits, a fold; the other data have one.
        seed: of initial weights, orders and noise.
    """
    study = SIZES[name]
    (x, y), _, (x_test, y_test) = parts(name, directory, study, split, tuning=False)
    loader = DataLoader(TensorDataset(x, y), batch_size=study.batch, shuffle=True)
    epoch = len(epoch_batches(len(x), study.batch, seed, 0))
    torch.manual_seed(seed)
    model = build_model("resnet8", num_classes=10, in_channels=x.shape[1], width=study.width)
    recipe, start, tuner = RECIPES[method], time.process_time(), None
    if configuration is not None:
        optimizer = ROWS[method].build(model, len(x), seed=seed, **configuration)
        chosen = {"lr": configuration["lr"], "damping": configuration.get("damping", recipe.options.get("damping"))}
    else:
        optimizer = automatic(method, model, loader, seed)
        steps = study.epochs * epoch
        chosen = search(
            optimizer, model, Categorical(), (x, y), study.batch, seed, 100, steps, images=True, known=searched
        )
        set_groups(optimizer, chosen)
        for group in optimizer.param_groups:
            group["ess"] *= chosen["ess_factor"]
        temperature = recipe.temperature / chosen["ess_factor"]
        start_tuning = study.epochs // 2 * epoch
        tuner = vogn.PriorTuner(
            optimizer, every=epoch, start=start_tuning, temperature=temperature, only=["classifier"]
        )
    before = time.process_time()
    loop(model, optimizer, Categorical(), (x, y), epochs=study.epochs, batch=study.batch, seed=seed, tuner=tuner)
    end = time.process_time()
    p = predictions(
        ROWS[method], model, optimizer, x_test, study.samples, x[: study.calibration], PREDICTION_TEMPERATURE
    )["posterior"]
    return chosen | {
        "setting_seconds": round(before - start, 2),
        "training_seconds": round(end - before, 2),
        **measure(p, y_test),
    }


def regress(
    method: str,
    seed: int,
    x: Tensor,
    y: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    configuration: Found | None,
    searched: Found | None = None,
) -> Found:
    """One run of a perceptron; ``configuration=None`` is "auto", with what was ``searched`` if that is known."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(x.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, 1))
    likelihood = Gaussian("learn", initial=0.5)
    noise = torch.optim.Adam(likelihood.parameters(), lr=0.02)
    start, tuner = time.process_time(), None
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True)
    prior = 1.0 if configuration is None else configuration["prior"]
    epoch = len(epoch_batches(len(x), BATCH, seed, 0))
    epochs = math.ceil(STEPS / epoch)
    optimizer = vogn.METHODS[method].build(
        model,
        ess="auto",
        data=loader,
        weight_decay=prior / len(x),
        initial_curvature="auto",
        fisher="ggn",
        seed=seed,
        groups=vogn.layer_groups(model),
    )
    if configuration is None:
        batches = [(x, y)]
        tuner = vogn.PriorTuner(
            optimizer,
            every=5 * epoch,
            start=epochs // 2 * epoch,
            measure=lambda: vogn.laplace(model, likelihood, batches, structure="dense"),
        )
        chosen = search(optimizer, model, likelihood, (x, y), BATCH, seed, STEPS // 5, STEPS, known=searched)
    else:
        chosen = {"lr": configuration["lr"]}
    set_groups(optimizer, chosen)
    before = time.process_time()
    loop(model, optimizer, likelihood, (x, y), epochs=epochs, batch=BATCH, seed=seed, tuner=tuner, noise=noise)
    end = time.process_time()
    found = vogn.predict(model, optimizer.posterior(), x_test, samples=SAMPLES, likelihood=likelihood)
    return chosen | {
        "prior_precision": [group["weight_decay"] * len(x) for group in optimizer.param_groups],
        "noise": float(likelihood.log_noise.detach().exp()),
        "rmse": float((found.mean.reshape(-1) - y_test.reshape(-1)).square().mean().sqrt()),
        "setting_seconds": round(before - start, 2),
        "training_seconds": round(end - before, 2),
    }
