"""Data sets, noise, lengths, and where the cells lie."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.uci.data import standardised

RESULTS = Path(__file__).parents[1] / "results" / "nuts"
NOISE = {"yacht": 0.2, "energy": 0.2, "boston": 0.4, "concrete": 0.4}
"""Standard deviation of the noise in units of the standardised target, fixed for every method; also the data sets."""
PRIOR_PRECISION = 1.0
HIDDEN, TRAIN, TEST = 10, 150, 100


@dataclass(frozen=True)
class Form:
    """Lengths.

    Args:
        warmup, draws: of each of NUTS' two chains.
        tree_depth: of NUTS.
        steps: full-batch steps of every training run.
        seeds: runs with the chosen learning rate, the first being that of the choice.
    """

    warmup: int
    draws: int
    tree_depth: int
    steps: int
    seeds: int


FORMS = {
    "full": Form(warmup=500, draws=500, tree_depth=8, steps=4000, seeds=3),
    "reduced": Form(warmup=250, draws=250, tree_depth=8, steps=1200, seeds=2),
    "smoke": Form(warmup=4, draws=4, tree_depth=2, steps=20, seeds=1),
}


@dataclass(frozen=True)
class Split:
    """Standardised training and test rows, float64."""

    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


def check_data(folder: Path | None) -> Path:
    """The folder with all files.

    Raises:
        SystemExit: naming what is missing.
    """
    names = [f"uci_{name}.npz" for name in NOISE]
    if folder is None:
        raise SystemExit(f"the study needs --data-dir: a folder with {', '.join(names)} (arrays X and y)")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise SystemExit(f"--data-dir {folder} has no {', '.join(missing)}: arrays X (rows, columns) and y (rows,)")
    return folder


def load(name: str, folder: Path) -> Split:
    """The first rows of a fixed permutation train, the next ones test; all are standardised by the training rows."""
    with np.load(folder / f"uci_{name}.npz", allow_pickle=False) as archive:
        x, y = archive["X"].astype(np.float64), archive["y"].astype(np.float64)
    order = np.random.default_rng(0).permutation(len(x))[: TRAIN + TEST]
    train, test = standardised(x, y, order[:TRAIN], order[TRAIN:], torch.float64)
    return Split(train.x, train.y[:, None], test.x, test.y[:, None])


def folder(arguments: argparse.Namespace, name: str) -> Path:
    """Where the cells of a data set lie."""
    root: Path = arguments.results
    return root / arguments.form / name
