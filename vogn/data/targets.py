"""Real targets: what they must be, and their scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vogn.data.errors import DataError

_ROUNDING = 8.0
"""Relative to magnitude times machine epsilon, the range up to which targets count as constant."""


def real_targets(x: np.ndarray, y: np.ndarray, *, name: str) -> np.ndarray:
    """Targets in double precision, ``(N,)``.

    Raises:
        DataError: no examples, not one finite real number for every input.
    """
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{name} holds no examples")
    if y.dtype.kind not in "fiu":
        raise DataError(f"{name}: targets hold {y.dtype} values; a regression needs real numbers")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1 or len(y) != len(x):
        raise DataError(f"{name}: {len(x)} inputs but targets of shape {y.shape}; wanted is one number per input")
    values = y.astype(np.float64)
    if bad := int((~np.isfinite(values)).sum()):
        raise DataError(f"{name}: {bad} of {len(y)} targets are NaN or infinite; leave these examples out")
    return values


@dataclass(frozen=True)
class TargetScale:
    """The unit in which a network predicts: the mean and standard deviation of the training targets.

    Args:
        mean: of the training targets.
        std: likewise, > 0.
        whole: whether the training targets were stored as whole numbers.
    """

    mean: float
    std: float
    whole: bool = False

    @classmethod
    def fit(cls, y: np.ndarray, *, whole: bool, name: str) -> TargetScale:
        """Of training targets ``(N,)`` in double precision.

        Raises:
            DataError: they do not vary, or are too large to square.
        """
        low, high = float(y.min()), float(y.max())
        if high - low <= _ROUNDING * float(np.finfo(np.float64).eps) * max(abs(low), abs(high)):
            raise DataError(f"{name}: all {len(y)} targets are {low:g}; there is nothing to learn from a constant")
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = float(y.mean()), float(y.std())
        if not (np.isfinite(mean) and np.isfinite(std) and std > 0):
            raise DataError(f"{name} holds targets too large or too small to standardise; give them in another unit")
        return cls(mean, std, whole)

    def apply(self, y: np.ndarray, *, name: str) -> Tensor:
        """Standardised targets, float32, ``(N, 1)``.

        Raises:
            DataError: they are too far from the training targets for single precision.
        """
        with np.errstate(over="ignore"):
            scaled = ((y - self.mean) / self.std).astype(np.float32)
        if not np.isfinite(scaled).all():
            raise DataError(f"{name} holds targets too far from the training targets for single precision")
        return torch.from_numpy(np.ascontiguousarray(scaled)).unsqueeze(1)

    def undo(self, y: Tensor) -> Tensor:
        """From standardised numbers to those of the data, in double precision."""
        return y.double() * self.std + self.mean

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TargetScale:
        """The inverse of :meth:`to_dict`."""
        return cls(float(values["mean"]), float(values["std"]), bool(values["whole"]))
