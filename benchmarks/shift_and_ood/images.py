"""Images that a network learns, and images that it has never seen anything like."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.classification.images import Part, load
from benchmarks.classification.sizes import FULL as STUDIES

KNOWN = (0, 1, 2, 3, 4, 5)
"""Classes of CIFAR-10 that the open-set task learns: airplane, automobile, bird, cat, deer, dog."""
SHARED_WITH_CIFAR = ("English springer", "garbage truck")
"""Classes of Imagenette that CIFAR-10 has too: a dog and a truck."""


@dataclass(frozen=True)
class Task:
    """What is learnt and what it is compared with.

    Args:
        data: images that are learnt, and the study whose tuned configurations are used: ``"mnist"`` or ``"cifar10"``.
        train, validation, test: numbers of images, before those of unknown classes are taken out.
        epochs: of training.
        outside: most images of each other kind.
        known: classes that are learnt; the others are outside. ``None`` for all.
        corrupted: number of test images that are made worse; 0 leaves that out.
        batch: of training.
    """

    data: str
    train: int
    validation: int
    test: int
    epochs: int
    outside: int
    known: tuple[int, ...] | None = None
    corrupted: int = 0
    batch: int = 32

    @property
    def classes(self) -> int:
        """Number of classes that are learnt."""
        return len(self.known or range(10))


TASKS = {
    "mnist": Task("mnist", 2000, 200, 800, 6, 400, corrupted=200),
    "cifar10": Task("cifar10", 1200, 150, 600, 8, 300, corrupted=120),
    "cifar10-open": Task("cifar10", 1200, 150, 600, 8, 300, known=KNOWN),
}


def _full(task: Task) -> Task:
    study = STUDIES[task.data]
    sizes = {"train": study.train, "validation": study.validation, "epochs": study.epochs, "batch": study.batch}
    return replace(task, **sizes, test=2000, outside=1000, corrupted=300 if task.corrupted else 0)


FULL = {name: _full(task) for name, task in TASKS.items()}
"""With the training images and epochs of the full classification study."""


@dataclass(frozen=True)
class Images:
    """Images in [0, 1] with labels, ``(N, C, H, W)`` and ``(N,)``.

    Args:
        train, validation, test: of the task.
        outside: name to images of other kinds; labels are -1 unless they mean the same as those of the task.
    """

    train: Part
    validation: Part
    test: Part
    outside: dict[str, Part]


def images_of(task: Task, directory: Path) -> Images:
    """The images of a task; the same ones for every seed."""
    end = task.train + task.validation
    x, y, x_test, y_test = load(task.data, directory, limit=max(end, task.test))
    assert x_test is not None and y_test is not None
    parts = [
        (x[: task.train], y[: task.train]),
        (x[task.train : end], y[task.train : end]),
        (x_test[: task.test], y_test[: task.test]),
    ]
    outside: dict[str, Part] = {}
    if task.known is not None:
        known = torch.tensor(task.known)
        strange = ~torch.isin(parts[2][1], known)
        outside["unknown classes"] = _unlabelled(parts[2][0][strange])
        parts = [(x[keep], y[keep]) for x, y in parts for keep in (torch.isin(y, known),)]
    elif task.data == "mnist":
        outside = {"notMNIST": _notmnist(directory, task.outside), "USPS": _usps(directory, task.outside)}
    else:
        outside = {"Imagenette": _imagenette(directory, task.outside)}
    return Images(*parts, outside)


def missing_files(directory: Path | None) -> list[str]:
    """Names of the files that the study needs and the folder does not hold."""
    names = ("mnist.npz", "notmnist_test.npz", "usps.npz", "cifar10_jpegbytes.npz", "imagenette224_jpegbytes.npz")
    return [name for name in names if directory is None or not (directory / name).exists()]


def require_files(directory: Path | None) -> Path:
    """The folder, or the end of the program with the names of the files that are missing."""
    if missing := missing_files(directory):
        sys.exit(f"the study needs --data-dir with {', '.join(missing)} (arrays as in benchmarks/README.md)")
    assert directory is not None
    return directory


def _unlabelled(x: Tensor) -> Part:
    return x, torch.full((len(x),), -1)


def _chosen(count: int, wanted: int) -> Tensor:
    """Places of that many at random, always the same."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(0))[:wanted]


def _notmnist(directory: Path, count: int) -> Part:
    """Letters A to J in many typefaces, of MNIST's size and polarity."""
    with np.load(directory / "notmnist_test.npz", allow_pickle=False) as archive:
        x = torch.tensor(archive["x_test"])
    return _unlabelled(x[_chosen(len(x), count)].unsqueeze(1).float() / 255.0)


def _usps(directory: Path, count: int) -> Part:
    """Digits of another source: 16 pixels brought to 20, within a margin of 4, as those of MNIST lie in theirs."""
    with np.load(directory / "usps.npz", allow_pickle=False) as archive:
        x, y = torch.tensor(archive["x_test"]), torch.tensor(archive["y_test"]).long()
    chosen = _chosen(len(x), count)
    larger = F.interpolate(x[chosen].unsqueeze(1), size=(20, 20), mode="bilinear", align_corners=False)
    return F.pad(larger, (4, 4, 4, 4)).clamp(0.0, 1.0), y[chosen]


def _imagenette(directory: Path, count: int) -> Part:
    """Photographs of eight classes that CIFAR-10 does not have, at 32 pixels."""
    from PIL import Image

    with np.load(directory / "imagenette224_jpegbytes.npz", allow_pickle=False) as archive:
        stream, offsets, y = archive["jpeg_val"], archive["offset_val"], archive["y_val"]
        names = [str(name) for name in archive["classes"]]
    kept = [k for k, label in enumerate(y) if names[label] not in SHARED_WITH_CIFAR]
    out = []
    for k in (kept[place] for place in _chosen(len(kept), count).tolist()):
        with Image.open(io.BytesIO(stream[offsets[k] : offsets[k + 1]].tobytes())) as image:
            out.append(np.asarray(image.convert("RGB").resize((32, 32), Image.Resampling.BICUBIC)))
    return _unlabelled(torch.tensor(np.stack(out)).permute(0, 3, 1, 2).float() / 255.0)
