"""Training, validation and test parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from vogn.data.augmentation import Augmentation
from vogn.data.preprocessing import Preprocessing
from vogn.data.targets import TargetScale


@dataclass(frozen=True)
class Split:
    """Inputs and targets.

    Args:
        x: network inputs, float32, ``(N, C, H, W)`` or ``(N, F)``.
        y: class numbers, int64, ``(N,)``; or standardised numbers, float32, ``(N, 1)``.
    """

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True)
class Parts:
    """A data set ready for training, whatever its targets are.

    Args:
        name: what was asked for, e.g. ``"digits"``.
        train: the training part.
        validation: watched during training; it may be empty.
        test: for the final figures.
        preprocessing: how raw inputs became ``x``.
        augmentation: applied to training batches, or ``None``.
        remark: what a person should know about how the targets were read; usually empty.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    preprocessing: Preprocessing
    augmentation: Augmentation | None
    remark: str = field(default="", kw_only=True)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one network input."""
        return self.preprocessing.input_shape

    @property
    def augmentation_factor(self) -> float:
        """How many times larger augmentation makes the training set; 1 without augmentation."""
        return 1.0 if self.augmentation is None else self.augmentation.factor


@dataclass(frozen=True)
class Data(Parts):
    """A classification data set.

    Args:
        class_names: one name per class.
        name, train, validation, test, preprocessing, augmentation, remark: see :class:`Parts`.
    """

    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True)
class RealData(Parts):
    """A regression data set.

    Args:
        targets: the scale of the targets.
        name, train, validation, test, preprocessing, augmentation, remark: see :class:`Parts`.
    """

    targets: TargetScale


def numbered(count: int) -> tuple[str, ...]:
    """Names of classes that have none of their own: ``"0", "1", ...``."""
    return tuple(str(label) for label in range(count))


def stratified_parts(labels: np.ndarray, fractions: Sequence[float], *, seed: int) -> list[np.ndarray]:
    """Disjoint random index sets with the classes in equal proportion.

    Args:
        labels: class numbers, ``(N,)``.
        fractions: size of every part but the last, each in [0, 1), summing to less than 1; the last part is the rest.
        seed: the result is a function of the labels, the fractions and this seed.

    Returns:
        ``len(fractions) + 1`` sorted index arrays that together hold every index once.
    """
    generator = np.random.default_rng([0x5917, seed])
    parts: list[list[np.ndarray]] = [[] for _ in range(len(fractions) + 1)]
    ends = np.cumsum(np.asarray(fractions, dtype=np.float64))
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        cuts = np.floor(ends * len(members) + 0.5).astype(int)
        for part, piece in zip(parts, np.split(members, cuts), strict=True):
            part.append(piece)
    return [np.sort(np.concatenate(part)) for part in parts]
