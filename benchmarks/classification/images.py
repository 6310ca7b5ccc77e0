"""The images of a cell."""

from __future__ import annotations

import io
import sys
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.classification.sizes import Study


@cache
def load(
    data: str, directory: Path | None, limit: int = sys.maxsize
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Images ``(N, C, H, W)`` in [0, 1] and labels: training and, if the data set has one, test part.

    Args:
        data: ``"digits"``, ``"mnist"`` or ``"cifar10"``.
        directory: where the files are.
        limit: at most so many images of each part are decoded.

    Kept, for processes that make several cells.
    """
    if data == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        return torch.tensor(x, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16.0, torch.tensor(y), None, None
    name = {"mnist": "mnist.npz", "cifar10": "cifar10_jpegbytes.npz"}[data]
    if directory is None or not (directory / name).exists():
        sys.exit(f"{data} needs --data-dir with the file {name} (arrays as in benchmarks/README.md); it is missing")
    with np.load(directory / name, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    if data == "mnist":
        images = [torch.tensor(arrays[f"x_{part}"]).unsqueeze(1).float() / 255.0 for part in ("train", "test")]
    else:
        images = [_decode(arrays[f"jpeg_{part}"], arrays[f"offset_{part}"], limit) for part in ("train", "test")]
    labels = [
        torch.tensor(arrays[f"y_{part}"].astype(np.int64)[: len(found)])
        for part, found in zip(("train", "test"), images, strict=True)
    ]
    return images[0], labels[0], images[1], labels[1]


def _decode(stream: np.ndarray, offsets: np.ndarray, limit: int) -> Tensor:
    from PIL import Image

    count = min(len(offsets) - 1, limit)
    out = np.empty((count, 32, 32, 3), dtype=np.uint8)
    for k in range(count):
        with Image.open(io.BytesIO(stream[offsets[k] : offsets[k + 1]].tobytes())) as image:
            out[k] = np.asarray(image.convert("RGB"))
    return torch.tensor(out).permute(0, 3, 1, 2).float() / 255.0


Part = tuple[Tensor, Tensor]


def parts(data: str, directory: Path | None, study: Study, seed: int, *, tuning: bool) -> tuple[Part, Part, Part]:
    """Training, validation and held-out part of one cell, standardised with the training part's moments.

    The validation part (empty for digits) is for choosing the temperature of prediction.
    """
    tuned = study.tune_train + study.tune_validation + study.validation
    start = seed * tuned  # of a tuning split: no image is in two of them
    used = (start + tuned,) if tuning else (study.train + study.validation, study.test)
    x, y, x_test, y_test = load(data, directory, limit=max(used) if all(used) else sys.maxsize)
    x_val, y_val = x[:0], y[:0]
    if x_test is None or y_test is None:
        from sklearn.model_selection import StratifiedKFold, train_test_split

        folds = StratifiedKFold(study.seeds, shuffle=True, random_state=0).split(x.numpy(), y.numpy())
        train, test = list(folds)[seed]
        if tuning:
            train, test = train_test_split(train, test_size=0.2, random_state=0, stratify=y.numpy()[train])
        x, y, x_test, y_test = x[train], y[train], x[test], y[test]
    elif tuning:
        x, y = x[start:], y[start:]
        split = study.tune_train + study.tune_validation
        x_test, y_test = x[study.tune_train : split], y[study.tune_train : split]
        x_val, y_val = x[split : split + study.validation], y[split : split + study.validation]
        x, y = x[: study.tune_train], y[: study.tune_train]
    else:
        split = study.train + study.validation
        x_val, y_val = x[study.train : split], y[study.train : split]
        x, y = x[: study.train], y[: study.train]
        x_test, y_test = x_test[: study.test or None], y_test[: study.test or None]
    mean, std = x.mean((0, 2, 3), keepdim=True), x.std((0, 2, 3), keepdim=True)
    return ((x - mean) / std, y), ((x_val - mean) / std, y_val), ((x_test - mean) / std, y_test)
