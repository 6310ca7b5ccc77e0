"""Data with real targets, and the choice between labels and numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vogn.data.augmentation import standard_augmentation
from vogn.data.errors import DataError
from vogn.data.loading import FRACTIONS, checked_classes, class_data, hold_out, read_source
from vogn.data.preprocessing import Preprocessing
from vogn.data.raw import RawData
from vogn.data.splits import Data, RealData, Split
from vogn.data.targets import TargetScale, real_targets

FEWEST_ROWS = 10
"""Training examples that a regression needs."""
_MANY_CLASSES = 20
"""Beyond so many classes, whole numbers without names may well be numbers to predict."""
TASKS = ("auto", "classification", "regression")


def load_real_data(
    spec: str,
    *,
    seed: int = 0,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.2,
    image_size: int | None = None,
    augment: bool = True,
    preprocessing: Preprocessing | None = None,
    targets: TargetScale | None = None,
) -> RealData:
    """Load a regression data set.

    Args:
        spec: ``diabetes`` or ``npz:FILE`` with one number per input in ``y_train``; other sources as far as their
            targets are numbers.
        seed, validation_fraction, test_fraction, image_size, augment, preprocessing: see :func:`vogn.data.load_data`;
            parts that are missing are split off at random.
        targets: a fitted scale to use instead of fitting one to the training targets. Whole numbers are then refused
            where the scale is not of whole numbers: they look like labels.

    Returns:
        The data: inputs and targets standardised with the moments of the training part.

    Raises:
        DataError: anything wrong with the description, the file or its contents, in one line: NaN, targets of another
            shape, fewer than 10 training examples, constant targets.
        MissingExtraError: the source needs a library that is not installed.

    Example:
        >>> from vogn.data import load_real_data
        >>> data = load_real_data("diabetes")
        >>> tuple(data.train.x.shape), tuple(data.train.y.shape), round(data.targets.std)
        ((309, 10), (309, 1), 78)
    """
    raw = read_source(spec, image_size)
    fractions = {"test": test_fraction, "validation": validation_fraction}
    return real_data(
        raw, spec, fractions, seed=seed, augment=augment, preprocessing=preprocessing, targets=targets
    )


def real_data(
    raw: RawData,
    spec: str,
    fractions: dict[str, float],
    *,
    seed: int = 0,
    augment: bool = True,
    preprocessing: Preprocessing | None = None,
    targets: TargetScale | None = None,
) -> RealData:
    """:func:`load_real_data` of what a source has handed over; ``fractions`` by part."""
    if raw.class_names is not None:
        raise DataError(f"{spec} has classes with names, not numbers to predict; a regression needs real targets")
    whole = raw.train[1].dtype.kind in "iu"
    if targets is not None and whole and not targets.whole:
        raise DataError(
            f"{spec} holds whole numbers ({raw.train[1].dtype}), such as class labels are, but the training targets "
            "were floating-point numbers; use the same kind"
        )
    parts = {
        part: (np.asarray(x), real_targets(x, y, name=f"{spec} [{part}]")) for part, (x, y) in raw.parts().items()
    }
    one_group = np.zeros(len(parts["train"][1]), dtype=np.int64)
    parts = hold_out(parts, fractions, seed=seed, name=spec, strata=one_group)
    x, y = parts["train"]
    if targets is None:
        if len(y) < FEWEST_ROWS:
            raise DataError(f"{spec} has {len(y)} training examples; a regression needs at least {FEWEST_ROWS}")
        targets = TargetScale.fit(y, whole=whole, name=f"{spec} [train]")
    if preprocessing is None:
        preprocessing = Preprocessing.fit(x, name=f"{spec} [train]")
    splits = {
        part: Split(
            x=preprocessing.apply(x, name=f"{spec} [{part}]"), y=targets.apply(y, name=f"{spec} [{part}]")
        )
        for part, (x, y) in parts.items()
    }
    return RealData(
        name=spec,
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        preprocessing=preprocessing,
        augmentation=standard_augmentation(preprocessing.input_shape) if augment else None,
        targets=targets,
    )


def choose_task(raw: RawData, spec: str) -> tuple[str, str]:
    """Whether the targets of a data set are labels or numbers.

    Classes with names are labels. Floating-point targets are numbers, unless they are the class numbers 0 .. K-1, every
    one of them there, K at least 2. Whole numbers are labels.

    Args:
        raw: what a source has handed over.
        spec: its description, for messages.

    Returns:
        ``"classification"`` or ``"regression"``, and a remark where the choice might surprise, else ``""``.

    Raises:
        DataError: for whole numbers that are no class numbers: it must be told what they are.
    """
    if raw.class_names is not None:
        return "classification", ""
    y = np.asarray(raw.train[1])
    taken = f"{spec}: targets are taken for class labels; task regression takes them for numbers"
    if y.dtype.kind == "f":
        count = _class_numbers(y)
        if count < 2:
            return "regression", ""
        return "classification", f"{taken} (they are floating-point numbers, but exactly 0 .. {count - 1})"
    return _whole_numbers(raw, spec, taken)


def _whole_numbers(raw: RawData, spec: str, taken: str) -> tuple[str, str]:
    try:
        _, count = checked_classes(raw, spec)
    except DataError as error:
        if raw.train[1].dtype.kind not in "iu":
            raise
        raise DataError(f"{error}; if these are numbers to predict, choose the task regression") from error
    return "classification", f"{taken} (whole numbers, {count} classes)" if count > _MANY_CLASSES else ""


def _class_numbers(y: np.ndarray) -> int:
    """The number of classes if the targets are ``0 .. K-1`` without gaps, else 0."""
    if y.ndim > 2 or (y.ndim == 2 and y.shape[1] != 1) or y.size == 0:
        return 0
    found = np.unique(y)
    return len(found) if np.array_equal(found, np.arange(len(found))) else 0


def load_task_data(
    spec: str,
    task: str,
    *,
    image_size: int | None = None,
    augment: bool = True,
    preprocessing: Preprocessing | None = None,
    targets: TargetScale | None = None,
) -> Data | RealData:
    """:func:`load_data` or :func:`load_real_data`.

    Args:
        spec, image_size, augment, preprocessing, targets: see there.
        task: ``"classification"``, ``"regression"``, or ``"auto"``: see
            :func:`choose_task`.

    Raises:
        DataError, MissingExtraError: see there; or for an unknown task.
    """
    if task not in TASKS:
        raise DataError(f"unknown task {task!r}; allowed are {', '.join(TASKS)}")
    raw = read_source(spec, image_size)
    chosen, remark = choose_task(raw, spec) if task == "auto" else (task, "")
    if chosen == "classification":
        return replace(
            class_data(raw, spec, FRACTIONS, augment=augment, preprocessing=preprocessing), remark=remark
        )
    return real_data(raw, spec, FRACTIONS, augment=augment, preprocessing=preprocessing, targets=targets)
