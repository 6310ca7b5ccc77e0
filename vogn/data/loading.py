"""``load_data``: from a description such as ``digits`` or ``npz:FILE`` to checked, split, standardised tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from vogn.data.augmentation import standard_augmentation
from vogn.data.diabetes import load_diabetes
from vogn.data.digits import load_digits
from vogn.data.errors import DataError
from vogn.data.huggingface import load_huggingface
from vogn.data.imagefolder import load_imagefolder
from vogn.data.npz import load_npz
from vogn.data.preprocessing import Preprocessing
from vogn.data.raw import LabelledArrays, RawData, check_range, checked_labels, class_count
from vogn.data.splits import Data, Split, numbered, stratified_parts

FRACTIONS = {"test": 0.2, "validation": 0.1}
"""Shares that are held out by default, in this order, where a source has no such parts."""


class Source(Protocol):
    """Reads what stands behind the colon of a description."""

    def __call__(self, location: str, *, image_size: int | None) -> RawData: ...


SOURCES: dict[str, tuple[str, Source]] = {
    "digits": ("", load_digits),
    "npz": ("FILE", load_npz),
    "imagefolder": ("DIR", load_imagefolder),
    "hf": ("NAME", load_huggingface),
    "diabetes": ("", load_diabetes),
}
"""Kind to (what follows the colon, reader). Help texts, error messages and tests iterate it."""


def absolute(spec: str) -> str:
    """The same description, with the full path of a file or folder: it holds in every working directory."""
    kind, colon, location = spec.partition(":")
    is_path = kind in ("npz", "imagefolder") or (kind == "hf" and Path(location).exists())
    return f"{kind}:{Path(location).absolute()}" if colon and location and is_path else spec


def load_data(
    spec: str,
    *,
    seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    num_classes: int | None = None,
    image_size: int | None = None,
    augment: bool = True,
    preprocessing: Preprocessing | None = None,
) -> Data:
    """Load a classification data set.

    Args:
        spec: ``digits``, ``npz:FILE``, ``imagefolder:DIR`` or ``hf:NAME``; real targets need
            :func:`vogn.data.load_real_data`.
        seed: of the random split, where the source has no parts of its own; not of the training order.
        validation_fraction: share of the examples held out for validation where the source has no such part, in [0, 1);
            a small data set may end up with an empty part.
        test_fraction: likewise for the test part.
        num_classes: number of classes; ``None`` takes it from the source or from the training labels.
        image_size: side in pixels to which image files are brought (shorter side, middle crop); ``None`` leaves them.
        augment: whether to attach the customary augmentation (see :func:`vogn.data.standard_augmentation`).
        preprocessing: a fitted map to use instead of fitting one to the training inputs.

    Returns:
        The data: float32 inputs, standardised with the mean and standard deviation of the training inputs.

    Raises:
        DataError: anything wrong with the description, the file or its contents, in one line.
        MissingExtraError: the source needs a library that is not installed.
    """
    raw = read_source(spec, image_size)
    fractions = {"test": test_fraction, "validation": validation_fraction}
    return class_data(
        raw, spec, fractions, seed=seed, num_classes=num_classes, augment=augment, preprocessing=preprocessing
    )


def class_data(
    raw: RawData,
    spec: str,
    fractions: dict[str, float],
    *,
    seed: int = 0,
    num_classes: int | None = None,
    augment: bool = True,
    preprocessing: Preprocessing | None = None,
) -> Data:
    """:func:`load_data` of what a source has handed over; ``fractions`` by part."""
    parts, count = checked_classes(raw, spec, num_classes)
    parts = hold_out(parts, fractions, seed=seed, name=spec)
    if preprocessing is None:
        preprocessing = Preprocessing.fit(parts["train"][0], name=f"{spec} [train]")
    splits = {part: _split(preprocessing, arrays, f"{spec} [{part}]") for part, arrays in parts.items()}
    names = raw.class_names if raw.class_names is not None and len(raw.class_names) == count else None
    return Data(
        name=spec,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        class_names=names or numbered(count),
        preprocessing=preprocessing,
        augmentation=standard_augmentation(preprocessing.input_shape) if augment else None,
    )


def read_source(spec: str, image_size: int | None) -> RawData:
    """What stands behind a description, as its source has it."""
    kind, _, location = spec.partition(":")
    allowed = ", ".join(f"{name}:{rest}" if rest else name for name, (rest, _) in SOURCES.items())
    if kind not in SOURCES or bool(SOURCES[kind][0]) != bool(location):
        raise DataError(f"unknown data {spec!r}; allowed are {allowed}")
    if image_size is not None and image_size < 1:
        raise DataError(f"image_size is {image_size}; it is a number of pixels, at least 1")
    return SOURCES[kind][1](location, image_size=image_size)


def checked_classes(
    raw: RawData, spec: str, num_classes: int | None = None
) -> tuple[dict[str, LabelledArrays], int]:
    """The parts with labels in int64, and the number of classes.

    Raises:
        DataError: these are no labels of that many classes.
    """
    parts = {
        part: (arrays[0], checked_labels(*arrays, name=f"{spec} [{part}]")) for part, arrays in raw.parts().items()
    }
    wanted = num_classes if num_classes is not None or raw.class_names is None else len(raw.class_names)
    count = class_count(parts["train"][1], wanted=wanted, name=f"{spec} [train]")
    for part, (_, labels) in parts.items():
        check_range(labels, count, name=f"{spec} [{part}]")
    return parts, count


def hold_out(
    parts: dict[str, LabelledArrays],
    fractions: dict[str, float],
    *,
    seed: int,
    name: str,
    strata: np.ndarray | None = None,
) -> dict[str, LabelledArrays]:
    """Take the parts that are missing out of the training part.

    Args:
        parts: inputs and targets of those that are there.
        fractions: shares of the training part, by part.
        seed: of the random choice.
        name: of the data, for messages.
        strata: numbers of the training examples' groups, of which every part gets its share; ``None``: their labels.

    Raises:
        DataError: shares that cannot be, or too few examples.
    """
    for part, fraction in fractions.items():
        if not 0.0 <= fraction < 1.0:
            raise DataError(f"{part}_fraction is {fraction}; it is a share in [0, 1)")
    missing = [part for part in fractions if part not in parts]
    if sum(fractions[part] for part in missing) >= 1.0:
        raise DataError(f"the held-out fractions {fractions} leave nothing to train on")
    x, y = parts["train"]
    groups = y if strata is None else strata
    indices = stratified_parts(groups, [fractions[part] for part in missing], seed=seed)
    result = dict(parts)
    for part, chosen in zip([*missing, "train"], indices, strict=True):
        if len(chosen) == 0 and part != "validation" and fractions.get(part, 1.0) > 0.0:
            raise DataError(f"{name} has {len(y)} training examples: too few to hold out a {part} part")
        result[part] = (x[chosen], y[chosen])
    return result


def _split(preprocessing: Preprocessing, arrays: LabelledArrays, name: str) -> Split:
    x, y = arrays
    return Split(x=preprocessing.apply(np.asarray(x), name=name), y=torch.from_numpy(y))
