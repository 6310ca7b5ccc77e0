"""Two small studies: what range tests see, and where the curvature starts."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

import vogn
from benchmarks.auto_settings.one_run import PREDICTION_TEMPERATURE, automatic, loop
from benchmarks.auto_settings.sizes import SIZES
from benchmarks.cells import command, environment, read_cell, write_cell
from benchmarks.classification.images import parts
from benchmarks.classification.one_run import measure, predictions
from benchmarks.classification.rows import ROWS
from vogn.cli.contenders import RECIPES
from vogn.likelihoods import Categorical
from vogn.models import build_model
from vogn.optim.range_choice import choose

TESTED = (("mnist", "vogn"), ("mnist", "kfac"), ("cifar10", "kfac"), ("cifar10", "vogn"))


def rates(arguments: argparse.Namespace) -> None:
    """What range tests see and choose, seed 0: the sweep's choice, and the short runs that follow; the table."""
    path = arguments.results / "rates.json"
    line = command("benchmarks.auto_settings")
    record = read_cell(path) or {"environment": environment(), "command": line, "rows": []}
    done = {(row["data"], row["method"]) for row in record["rows"]}
    for data, method in TESTED:
        if (data, method) in done:
            continue
        study = SIZES[data]
        (x, y), _, _ = parts(data, arguments.data_dir, study, 0, tuning=False)
        torch.manual_seed(0)
        model = build_model("resnet8", num_classes=10, in_channels=x.shape[1], width=study.width)
        loader = DataLoader(TensorDataset(x, y), batch_size=study.batch, shuffle=True)
        start = time.process_time()
        found = vogn.learning_rate_range_test(automatic(method, model, loader, 0), model, Categorical(), loader)
        seconds = round(time.process_time() - start, 1)
        row = {"data": data, "method": method, "sweep": choose(found.rates, found.losses), "seconds": seconds}
        record["rows"].append(row | {key: found.to_dict()[key] for key in ("suggestion", "runs")})
        write_cell(path, record)
    print("| data, method | choice of the sweep | short runs: final loss at rate | choice | seconds |")
    print("|---|---|---|---|---|")
    for row in record["rows"]:
        runs = ", ".join("failed" if loss is None else f"{loss:.2f} at {rate:.2g}" for rate, loss in row["runs"])
        print(
            f"| {row['data']}, {row['method']} | {row['sweep']:.2g} | {runs} | {row['suggestion']:.2g} | "
            f"{row['seconds']:.0f} |"
        )


STARTS: dict[str, tuple[Any, ...]] = {
    "vogn": ("first_batch", 0.0, 1e-3, 0.1),
    "kfac": ("first_batch", 0.0, 1e-3, 0.1),
    "ivon": ("auto", 1.0, 0.3, 0.03),
}


def curvature(arguments: argparse.Namespace) -> None:
    """Accuracy and NLL on digits, two folds, by where the curvature starts; the table."""
    path = arguments.results / "initial_curvature.json"
    record = read_cell(path) or {"environment": environment(), "rows": []}
    study = replace(SIZES["digits"], epochs=4)
    done = {(row["method"], row["start"]) for row in record["rows"]}
    for method, start in ((m, start) for m, starts in STARTS.items() for start in starts):
        if (method, start) in done:
            continue
        recipe, scores = RECIPES[method], []
        for seed in (0, 1):
            (x, y), _, (x_test, y_test) = parts("digits", None, study, seed, tuning=False)
            torch.manual_seed(seed)
            model = build_model("resnet8", num_classes=10, in_channels=1, width=study.width)
            ess = vogn.effective_sample_size(len(x), temperature=recipe.temperature)
            options = dict(recipe.options) | {"initial_curvature": start, "ess": ess, "seed": seed}
            optimizer = vogn.METHODS[method].build(model, weight_decay=recipe.prior_precision / ess, **options)
            loop(model, optimizer, Categorical(), (x, y), epochs=study.epochs, batch=study.batch, seed=seed)
            p = predictions(ROWS[method], model, optimizer, x_test, 8, x[:256], PREDICTION_TEMPERATURE)["posterior"]
            scores.append(measure(p, y_test))
        row = {"method": method, "start": start, "resolved": optimizer.param_groups[0]["initial_curvature"]}
        record["rows"].append(row | {key: [score[key] for score in scores] for key in ("accuracy", "nll")})
        write_cell(path, record)
    print("| method | initial_curvature | accuracy % | NLL |")
    print("|---|---|---|---|")
    for row in record["rows"]:
        start = f"auto ({row['resolved']:.2g})" if row["start"] == "auto" else row["start"]
        print(f"| {row['method']} | {start} | {100 * np.mean(row['accuracy']):.2f} | {np.mean(row['nll']):.4f} |")
