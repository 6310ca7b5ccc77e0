"""The data sets, their splits, and batches for many networks at once."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

DATA = ("boston", "concrete", "energy", "power", "wine_red", "yacht")


@dataclass(frozen=True)
class Part:
    """Standardised rows of one split.

    Args:
        x: ``(n, d)``.
        y: ``(n,)``.
        scale: standard deviation of the training targets: what residuals are multiplied by.
    """

    x: Tensor
    y: Tensor
    scale: float


def split(directory: Path | None, name: str, number: int, *, tuning: bool, limit: int = 0) -> tuple[Part, Part]:
    """Training and held-out part of a split.

    Args:
        directory: where ``uci_NAME.npz`` is: ``X``, ``y``, ``train_0``, ``test_0`` ...
        name: of the data set.
        number: of the split.
        tuning: hold out a fifth of the training rows instead of the test rows.
        limit: of training rows while tuning; 0 for none.
    """
    path = None if directory is None else directory / f"uci_{name}.npz"
    if path is None or not path.exists():
        sys.exit(f"{name} needs --data-dir with the file uci_{name}.npz (arrays: benchmarks/README.md); it is missing")
    with np.load(path, allow_pickle=False) as archive:
        x, y = archive["X"].astype(np.float64), archive["y"].astype(np.float64)
        train, held = archive[f"train_{number}"], archive[f"test_{number}"]
    if tuning:
        order = np.random.default_rng(number).permutation(train)
        cut = len(order) // 5
        train, held = order[cut:], order[:cut]
        train, held = (train[:limit], held[: limit // 4]) if limit else (train, held)
    return standardised(x, y, train, held, torch.float32)


def standardised(
    x: np.ndarray, y: np.ndarray, train: np.ndarray, held: np.ndarray, dtype: torch.dtype
) -> tuple[Part, Part]:
    """Rows ``train`` and ``held``, inputs and targets standardised by the former; constant inputs become 0."""
    mean, deviation = x[train].mean(0), x[train].std(0)
    deviation[deviation == 0.0] = 1.0
    centre, scale = y[train].mean(), y[train].std()
    return tuple(  # type: ignore[return-value]
        Part(
            torch.tensor((x[rows] - mean) / deviation, dtype=dtype),
            torch.tensor((y[rows] - centre) / scale, dtype=dtype),
            float(scale),
        )
        for rows in (train, held)
    )


def stacked(parts: list[Part]) -> tuple[Tensor, Tensor]:
    """``(n, R, d)`` and ``(n, R)`` of equally long parts; longer ones lose their last rows."""
    n = min(len(part.y) for part in parts)
    return torch.stack([part.x[:n] for part in parts], 1), torch.stack([part.y[:n] for part in parts], 1)


def batches(x: Tensor, y: Tensor, size: int, steps: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """So many batches, epoch after epoch in a new order."""
    source = torch.Generator().manual_seed(seed)
    done = 0
    while True:
        for rows in torch.randperm(len(y), generator=source).split(size):
            if len(rows) == min(size, len(y)):
                yield x[rows], y[rows]
                done += 1
                if done == steps:
                    return
