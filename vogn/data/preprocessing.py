"""From raw arrays to network inputs: layout, scaling to [0, 1] for 8-bit images, standardisation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vogn.data.errors import DataError

_CHANNEL_COUNTS = (1, 3, 4)
_WHOLE_ROUNDING = {"float32": 1e-8, "float64": 1e-12}
"""Relative to the mean, the standard deviation up to which a channel or feature of whole numbers counts as constant."""
_ROUNDING = 8.0
"""Relative to magnitude times machine epsilon, the range up to which one of floating-point numbers counts as such."""


@dataclass(frozen=True)
class Preprocessing:
    """The map that was fitted on the training inputs and is applied to every other input.

    Args:
        input_shape: shape of one network input: ``(C, H, W)`` or ``(F,)``.
        eight_bit: whether raw inputs are 8-bit images, divided by 255 first.
        mean: mean of the training inputs, one value per channel (images) or per feature.
        std: standard deviation likewise; channels and features that do not vary have 1, those that vary by no more
            than the rounding of their values 1 or, if larger, their magnitude.
    """

    input_shape: tuple[int, ...]
    eight_bit: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @classmethod
    def fit(cls, x: np.ndarray, *, name: str) -> Preprocessing:
        """Fit to raw training inputs ``x``; ``name`` stands for them in messages."""
        eight_bit = x.dtype == np.uint8 and x.ndim > 2
        raw = channels_first(_as_floats(x, eight_bit=eight_bit, name=name), name=name)
        axes = (0, 2, 3) if raw.ndim == 4 else (0,)
        with np.errstate(over="ignore", invalid="ignore"):
            mean, std = raw.mean(axis=axes, dtype=np.float64), raw.std(axis=axes, dtype=np.float64)
        if not (np.isfinite(mean).all() and np.isfinite(std).all()):
            raise DataError(f"{name} holds numbers too large to standardise; give them in a larger unit")
        if x.dtype.kind == "f":
            mean, std = _without_rounding(raw.min(axis=axes), raw.max(axis=axes), mean, std, x.dtype)
        else:
            std = np.where(std > _WHOLE_ROUNDING[raw.dtype.name] * np.abs(mean), std, 1.0)
        return cls(tuple(raw.shape[1:]), bool(eight_bit), tuple(map(float, mean)), tuple(map(float, std)))

    def apply(self, x: np.ndarray, *, name: str) -> Tensor:
        """Network inputs, float32, shape ``(N, *input_shape)``.

        Raises:
            DataError: the array has another shape per example or another kind of number than the training inputs.
        """
        if self.eight_bit != (x.dtype == np.uint8 and x.ndim > 2):
            wanted = "8-bit integers (uint8)" if self.eight_bit else "floating-point numbers"
            raise DataError(f"{name} holds {x.dtype}, but the training inputs were {wanted}; use the same units")
        raw = channels_first(_as_floats(x, eight_bit=self.eight_bit, name=name), name=name)
        if tuple(raw.shape[1:]) != self.input_shape:
            raise DataError(
                f"{name} has examples of shape {tuple(raw.shape[1:])}, but the training inputs have {self.input_shape}"
            )
        ones = (1,) * (raw.ndim - 2)
        mean = np.asarray(self.mean, dtype=raw.dtype).reshape(-1, *ones)
        std = np.asarray(self.std, dtype=raw.dtype).reshape(-1, *ones)
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            standardised = np.ascontiguousarray((raw - mean) / std, dtype=np.float32)
        if not np.isfinite(standardised).all():
            raise DataError(f"{name} holds numbers too far from the training inputs for single precision")
        return torch.from_numpy(standardised)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON and for checkpoints."""
        return {
            "input_shape": list(self.input_shape),
            "eight_bit": self.eight_bit,
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of :meth:`to_dict`."""
        return cls(
            input_shape=tuple(values["input_shape"]),
            eight_bit=bool(values["eight_bit"]),
            mean=tuple(values["mean"]),
            std=tuple(values["std"]),
        )


def _without_rounding(
    low: np.ndarray, high: np.ndarray, mean: np.ndarray, std: np.ndarray, dtype: np.dtype[Any]
) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard deviations between these bounds, so that rounding of values of that type is not blown up."""
    epsilon = max(float(np.finfo(dtype).eps), float(np.finfo(low.dtype).eps))
    low, high = low.astype(np.float64), high.astype(np.float64)
    magnitude = np.maximum(np.abs(low), np.abs(high))
    constant = np.where(low == high, 1.0, np.maximum(magnitude, 1.0))
    std = np.where(high - low > _ROUNDING * epsilon * magnitude, std, constant)
    return np.clip(mean, low, high), std  # a sum of many equal numbers is rounded too


def _as_floats(x: np.ndarray, *, eight_bit: bool, name: str) -> np.ndarray:
    """Single precision for 8-bit images and what is single already; double for the rest, until it is standardised."""
    if x.dtype.kind not in "fiu":
        raise DataError(f"{name} holds {x.dtype}; inputs are real numbers (floating point, or uint8 for images)")
    narrow = x.dtype.kind == "f" and x.dtype.itemsize <= 4
    floats = x.astype(np.float32) / np.float32(255.0) if eight_bit else x.astype(np.float32 if narrow else np.float64)
    if not np.isfinite(floats).all():
        bad = int((~np.isfinite(floats)).reshape(len(floats), -1).any(axis=1).sum())
        raise DataError(f"{name} holds NaN or infinity in {bad} of {len(floats)} examples; clean the data first")
    return floats


def channels_first(x: np.ndarray, *, name: str) -> np.ndarray:
    """Images as ``(N, C, H, W)``, features as they are."""
    if x.ndim > 1 and 0 in x.shape[1:]:
        raise DataError(f"{name} has shape {x.shape}: its examples are empty")
    if x.ndim == 2:
        return x
    if x.ndim == 3:
        return x[:, None]
    if x.ndim == 4:
        return x.transpose(0, 3, 1, 2) if _is_channels_last(x) else x
    raise DataError(
        f"{name} has shape {x.shape}; allowed are (N, F) features and (N, H, W), (N, C, H, W) or (N, H, W, C) images"
    )


def _is_channels_last(x: np.ndarray) -> bool:
    return x.shape[3] in _CHANNEL_COUNTS and x.shape[1] not in _CHANNEL_COUNTS
