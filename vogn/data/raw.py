"""What a source of data hands over, before it is split and standardised, and the checks it must pass."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vogn.data.errors import DataError

LabelledArrays = tuple[np.ndarray, np.ndarray]
_MOST_CLASSES = 10**6


@dataclass(frozen=True)
class RawData:
    """Arrays as a source found them.

    Args:
        train: inputs and labels.
        validation: likewise, or ``None``: taken from the training part.
        test: likewise, or ``None``: taken from the training part.
        class_names: names of the classes, or ``None``: the labels' own numbers.
    """

    train: LabelledArrays
    validation: LabelledArrays | None
    test: LabelledArrays | None
    class_names: tuple[str, ...] | None = None

    def parts(self) -> dict[str, LabelledArrays]:
        """The parts that there are, by name, the training part first."""
        found = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: arrays for name, arrays in found.items() if arrays is not None}


def checked_labels(x: np.ndarray, y: np.ndarray, *, name: str) -> np.ndarray:
    """Labels as int64 ``(N,)``.

    Raises:
        DataError: no examples, unequal counts, or labels that are not whole non-negative numbers.
    """
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{name} holds no examples")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(y) != len(x):
        raise DataError(f"{name}: {len(x)} inputs but labels of shape {y.shape}; labels are one class number per input")
    if y.dtype.kind == "f" and np.isnan(y).any():
        raise DataError(f"{name}: {int(np.isnan(y).sum())} labels are NaN; labels are class numbers from 0")
    if y.dtype.kind not in "fiu" or (y.dtype.kind == "f" and not np.equal(np.floor(y), y).all()):
        raise DataError(f"{name}: labels hold {y.dtype} values; labels are whole class numbers from 0")
    if y.min() < 0:
        raise DataError(f"{name}: labels out of range: found {y.min()}, class numbers start at 0")
    if y.max() >= _MOST_CLASSES:
        raise DataError(f"{name}: labels out of range: found {y.max()}; class numbers are below {_MOST_CLASSES}")
    return y.astype(np.int64)


def class_count(train_labels: np.ndarray, *, wanted: int | None, name: str) -> int:
    """Number of classes that the training labels show.

    Raises:
        DataError: fewer than two classes, or ``wanted`` differs, or a class below the largest has no training example.
    """
    found = int(train_labels.max()) + 1
    if wanted is not None and found > wanted:
        check_range(train_labels, wanted, name=name)
    count = found if wanted is None else wanted
    if count < 2:
        raise DataError(f"{name} has {count} class; a classifier needs at least 2")
    empty = np.flatnonzero(np.bincount(train_labels, minlength=count) == 0)
    if len(empty):
        raise DataError(
            f"{name}: class-count mismatch: {count} classes, but class {empty[0]} has no training example "
            f"({len(empty)} such); number the classes 0 .. K-1 without gaps"
        )
    return count


def check_range(labels: np.ndarray, count: int, *, name: str) -> None:
    """Raise :class:`DataError` when a label is not below ``count``."""
    if len(labels) and labels.max() >= count:
        found = labels.max()
        raise DataError(f"{name}: labels out of range: found {found}, but there are {count} classes (0 .. {count - 1})")
