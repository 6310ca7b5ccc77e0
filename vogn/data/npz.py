"""NumPy archives. Pickled archives are refused: unpickling runs code."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from vogn.data.errors import DataError
from vogn.data.raw import LabelledArrays, RawData


def load_npz(location: str, *, image_size: int | None) -> RawData:
    """``x_train, y_train, x_test, y_test`` and optionally ``x_validation, y_validation`` of one archive."""
    arrays = read_arrays(location)
    parts = {part: _part(arrays, part, location) for part in ("train", "validation", "test")}
    train = parts["train"]
    if train is None:
        raise DataError(
            f"{location} has no array x_train (it has {', '.join(sorted(arrays)) or 'none'}); "
            "wanted: x_train, y_train, x_test, y_test and optionally x_validation, y_validation"
        )
    return RawData(train=train, validation=parts["validation"], test=parts["test"])


def load_inputs(path: str | Path) -> np.ndarray:
    """The unlabelled inputs of an archive: its array ``x``, or its only array.

    Raises:
        DataError: missing file, pickled content, no such array, no examples.
    """
    arrays = read_arrays(path)
    if "x" not in arrays and len(arrays) != 1:
        raise DataError(f"{path} has the arrays {', '.join(sorted(arrays)) or 'none'}; wanted is one array called x")
    inputs = arrays["x"] if "x" in arrays else next(iter(arrays.values()))
    if inputs.ndim == 0 or len(inputs) == 0:
        raise DataError(f"{path} holds no examples")
    return inputs


def read_arrays(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of an archive, without unpickling anything.

    Raises:
        DataError: the file is missing, not an archive, or pickled.
    """
    if not Path(path).is_file():
        raise DataError(f"no such file: {path}")
    if not zipfile.is_zipfile(path):
        raise DataError(f"{path} is not an .npz archive; write one with numpy.savez(path, x_train=..., ...)")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile, zlib.error, EOFError, MemoryError, RuntimeError) as error:
        if "pickle" in str(error).lower():
            raise DataError(
                f"{path} holds pickled objects, which are refused because loading them runs code; "
                "save plain numeric arrays (no dtype=object)"
            ) from error
        raise DataError(f"{path} cannot be read as an .npz archive: {error}") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # numpy hands over other members of an archive as bytes
            raise DataError(f"{path} holds {name}, which is not an array; write archives with numpy.savez")
    return arrays


def _part(arrays: Mapping[str, np.ndarray], part: str, location: str) -> LabelledArrays | None:
    inputs, labels = f"x_{part}", f"y_{part}"
    if inputs not in arrays and labels not in arrays:
        return None
    for present, absent in ((inputs, labels), (labels, inputs)):
        if absent not in arrays:
            raise DataError(f"{location} has {present} but no {absent}")
    return arrays[inputs], arrays[labels]
