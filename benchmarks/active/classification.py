"""One classification cell: a method with an acquisition on a data set with one seed."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.active.sizes import FORMS
from benchmarks.cells import command, environment, write_cell
from vogn.active import ActiveLearner, NaturalGradientMethod
from vogn.active.acquisitions import acquisition_of
from vogn.active.recipes import RECIPES
from vogn.data import load_data
from vogn.likelihoods import Categorical
from vogn.models import mlp

INITIAL, QUERY, POOL, TEST = 20, 10, 5000, 1000
HIDDEN = 100
SAMPLES = {"digits": 64, "mnist": 16}
KEPT = {"digits": 2000, "mnist": 1000}
"""Examples among which BatchBALD chooses."""
METHODS = {"noisy K-FAC": "kfac", "IVON": "ivon"}
COLD: dict[str, Any] = {"temperature": 0.1, "batch_size": 32}
SETTINGS: dict[tuple[str, str], dict[str, Any]] = {
    ("mnist", "kfac"): COLD | {"lr": 0.01, "damping": 0.03},
    ("mnist", "ivon"): COLD | {"lr": 0.01},
}
"""In place of those of the recipe, the best of six for K-FAC and of seven for IVON with random queries, up to 140
labels, one seed, the first 1000 test images; IVON diverged with its best rate (0.03) after 300 labels, on two seeds. At
temperature 1 the posterior of the network stays its prior."""
ACQUISITIONS = ("random", "entropy", "bald", "batchbald", "epig")
UPDATES = ("continue", "retrain", "prior")
"""How noisy K-FAC learns from new labels; compared on digits with BALD."""


def data_of(name: str, folder: Path | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pool and test part: inputs ``(n, d)`` or ``(n, 1, 28, 28)``, classes. Of MNIST the first 5000 training images,
    and of the test images the third 1000: settings were looked at on those before."""
    if name == "digits":
        data = load_data("digits")
        return data.train.x.flatten(1), data.train.y, data.test.x.flatten(1), data.test.y
    path = None if folder is None else folder / "mnist.npz"
    if path is None or not path.exists():
        sys.exit("mnist needs --data-dir with the file mnist.npz: arrays x_train, y_train, x_test, y_test")
    with np.load(path, allow_pickle=False) as archive:
        names = ("x_train", "y_train", "x_test", "y_test")
        parts = [archive[part][2 * TEST : 3 * TEST] if "test" in part else archive[part][:POOL] for part in names]
    x, y, x_test, y_test = parts
    mean, deviation = x.mean(), x.std()
    return tuple(  # type: ignore[return-value]
        torch.from_numpy((part - mean) / deviation).float().unsqueeze(1)
        if part.ndim > 1
        else torch.from_numpy(part).long()
        for part in (x.astype(float), y, x_test.astype(float), y_test)
    )


def network_of(name: str, x: Tensor) -> nn.Module:
    """A perceptron for digits; for MNIST two convolutions with 16 and 32 channels, 7946 parameters."""
    if name == "digits":
        return mlp((x.shape[1], HIDDEN, 10))
    return nn.Sequential(
        nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 9, 10),
    )  # fmt: skip


def run_cell(arguments: argparse.Namespace) -> None:
    """Ask and learn, resumable within the cell."""
    form = FORMS[arguments.form]
    x, y, x_test, y_test = data_of(arguments.data, arguments.data_dir)
    rounds = form.digits_rounds if arguments.data == "digits" else form.mnist_rounds
    name = METHODS[arguments.method]
    options = RECIPES[name] | SETTINGS.get((arguments.data, name), {})
    method = NaturalGradientMethod(
        name, update=arguments.update, steps=form.class_steps, update_steps=form.class_update_steps, **options
    )
    kept = {"kept": KEPT[arguments.data]} if arguments.acquisition == "batchbald" else {}
    acquisition = acquisition_of(arguments.acquisition, **kept)
    scratch, start = arguments.cell.with_suffix(".run"), time.process_time()
    learner = ActiveLearner(
        lambda: network_of(arguments.data, x), method, x, acquisition,
        likelihood=Categorical(), oracle=lambda numbers, inputs: y[numbers], initial=INITIAL, query_size=QUERY,
        test=(x_test, y_test), samples=SAMPLES[arguments.data], seed=arguments.seed, folder=scratch,
    )  # fmt: skip
    result = learner.run(rounds)
    keys = ("data", "method", "acquisition", "update", "seed", "form")
    record = {key: getattr(arguments, key) for key in keys} | {"result": result.to_dict()}
    record |= {"cpu_seconds": round(time.process_time() - start, 1), "environment": environment()}
    write_cell(arguments.cell, record | {"command": command("benchmarks.active")})
    shutil.rmtree(scratch)
