"""Inputs of another kind than the training data, brought into its form; their labels mean nothing."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vogn.data.errors import DataError
from vogn.data.loading import read_source
from vogn.data.npz import load_inputs, read_arrays
from vogn.data.preprocessing import Preprocessing, channels_first
from vogn.data.raw import RawData

_LUMINANCE = (0.299, 0.587, 0.114)


def load_other(spec: str, preprocessing: Preprocessing) -> tuple[Tensor, list[str]]:
    """Inputs of any data set as network inputs of a run that it was not made for, to see whether the run notices.

    The test part is taken, or all inputs of a source without parts; of an ``npz:FILE`` without these, its array ``x``.
    Labels and their number are not looked at. Image files are brought to the run's size as they are read. Other images
    are resized (bilinear, with anti-aliasing), grey ones repeated in three channels, colour ones turned grey (ITU-R
    BT.601), and floating-point ones in [0, 1] taken for 8-bit ones where the run has these; whatever was done is said.

    Args:
        spec: see :func:`vogn.data.load_data`.
        preprocessing: of the training data.

    Returns:
        Network inputs, float32, ``(N, *input_shape)``, and what was done to make them so, in words.

    Raises:
        DataError: unreadable, or in a form or unit that does not allow this.
        MissingExtraError: the source needs a library that is not installed.

    Example:
        >>> from vogn.data import load_data, load_other
        >>> x, changes = load_other("digits", load_data("digits").preprocessing)
        >>> tuple(x.shape), changes
        ((1797, 1, 8, 8), [])
    """
    x, name = _inputs(spec, preprocessing)
    changes: list[str] = []
    if len(preprocessing.input_shape) == 3 and x.ndim in (3, 4) and x.dtype.kind in "fiu":
        x = _as_images(x, preprocessing, changes, name)
    return preprocessing.apply(x, name=name), changes


def _inputs(spec: str, preprocessing: Preprocessing) -> tuple[np.ndarray, str]:
    kind, _, location = spec.partition(":")
    if kind == "npz" and location:
        arrays = read_arrays(location)
        key = next((key for key in ("x_test", "x_train") if key in arrays), None)
        x = load_inputs(location) if key is None else arrays[key]
        return _some(x, spec if key is None else f"{spec} [{key}]")
    shape = preprocessing.input_shape
    pictures = kind in ("imagefolder", "hf") and len(shape) == 3 and shape[1] == shape[2]
    raw: RawData = read_source(spec, shape[1] if pictures else None)
    x, part = (raw.train[0], "train") if raw.test is None else (raw.test[0], "test")
    return _some(x, f"{spec} [{part}]")


def _some(x: np.ndarray, name: str) -> tuple[np.ndarray, str]:
    """Those inputs and their name, unless there are none."""
    if x.ndim == 0 or len(x) == 0:
        raise DataError(f"{name} holds no examples")
    return x, name


def _as_images(x: np.ndarray, preprocessing: Preprocessing, changes: list[str], name: str) -> np.ndarray:
    """Images of the run's number of channels, size and kind of number, as far as there is one way to make them so."""
    channels, height, width = preprocessing.input_shape
    if preprocessing.eight_bit and x.dtype.kind == "f":
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise DataError(
                f"{name} holds {x.dtype} outside [0, 1], but the training inputs were 8-bit integers (uint8); give "
                "8-bit images, or numbers from 0 (black) to 1 (white)"
            )
        x = np.round(x * 255).astype(np.uint8)
        changes.append("numbers in [0, 1] multiplied by 255")
    images = channels_first(x, name=name)
    found = images.shape[1]
    same_kind = preprocessing.eight_bit == (x.dtype == np.uint8)
    if not same_kind or (found != channels and {found, channels} != {1, 3}):
        return images if same_kind else x  # the preprocessing says what is wrong
    if found == channels and images.shape[2:] == (height, width):
        return images
    values = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float64))
    if found == 1 and channels == 3:
        values = values.expand(-1, 3, -1, -1)
        changes.append("grey images repeated in 3 channels")
    elif found == 3 and channels == 1:
        values = (values * torch.tensor(_LUMINANCE, dtype=values.dtype).view(3, 1, 1)).sum(1, keepdim=True)
        changes.append("colour images turned grey")
    if tuple(values.shape[2:]) != (height, width):
        changes.append(f"resized from {values.shape[2]} x {values.shape[3]} to {height} x {width} pixels")
        values = F.interpolate(values, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
    result = values.numpy()
    return np.round(result).clip(0, 255).astype(np.uint8) if preprocessing.eight_bit else result
