"""Data sets of the Hugging Face ``datasets`` library: by name from the hub, or a folder written by ``save_to_disk``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vogn.data.errors import DataError
from vogn.data.imagefolder import is_colour, picture_to_array, stack_pictures
from vogn.data.raw import LabelledArrays, RawData
from vogn.errors import MissingExtraError

_INPUT_COLUMNS = ("image", "img", "x", "features", "pixel_values")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "y", "target", "class")
_VALIDATION_PARTS = ("validation", "valid", "val", "dev")


def load_huggingface(location: str, *, image_size: int | None) -> RawData:
    """The parts ``train``, ``validation`` and ``test`` of a data set, as far as it has them."""
    parts = _open(location)
    if "train" not in parts:
        raise DataError(f"hf:{location} has the parts {', '.join(parts)}; one of them must be called train")
    validation = next((name for name in _VALIDATION_PARTS if name in parts), None)
    columns = _columns(parts["train"], location)
    used = [name for name in ("train", validation, "test") if name is not None and name in parts]
    inputs = {name: _inputs(parts[name], columns[0], f"hf:{location} [{name}]", image_size) for name in used}
    colour = any(item.ndim == 3 for items in inputs.values() if isinstance(items, list) for item in items)
    arrays = {name: _arrays(inputs[name], parts[name], columns[1], f"hf:{location} [{name}]", colour) for name in used}
    label = parts["train"].features[columns[1]]
    names = tuple(label.names) if type(label).__name__ == "ClassLabel" else None
    return RawData(arrays["train"], arrays.get(validation or ""), arrays.get("test"), names)


def _open(location: str) -> Mapping[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise MissingExtraError("hf: needs the datasets library: pip install 'vogn[vision]'") from error
    try:
        found = datasets.load_from_disk(location) if Path(location).is_dir() else datasets.load_dataset(location)
    except Exception as error:  # the library raises many types: network, hub, file format
        reason = str(error).strip().splitlines()
        raise DataError(f"hf:{location} cannot be loaded: {reason[0] if reason else type(error).__name__}") from error
    return found if isinstance(found, Mapping) else {"train": found}


def _columns(part: Any, location: str) -> tuple[str, str]:
    features = part.features
    inputs = [name for name in _INPUT_COLUMNS if name in features]
    inputs += [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    labels = [name for name in _LABEL_COLUMNS if name in features]
    labels += [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    if not inputs or not labels:
        missing = "input" if not inputs else "label"
        wanted = _INPUT_COLUMNS if not inputs else _LABEL_COLUMNS
        raise DataError(
            f"hf:{location} has the columns {', '.join(features)}, none of which is the {missing} column; "
            f"rename it to one of {', '.join(wanted)}"
        )
    return inputs[0], labels[0]


def _inputs(part: Any, column: str, name: str, image_size: int | None) -> np.ndarray | list[np.ndarray]:
    """The numbers of the column, or its pictures as :func:`picture_to_array` gives them, grey or in colour."""
    if len(part) == 0:
        raise DataError(f"{name} holds no examples")
    if type(part.features[column]).__name__ != "Image":
        return _numbers(part, column, name)
    arrays = []
    for number, picture in enumerate(_pictures(part, column, name)):
        if picture is None:
            raise DataError(f"{name} number {number} has no image")
        try:
            arrays.append(picture_to_array(picture, image_size=image_size, colour=is_colour(picture)))
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{name} number {number} cannot be read as an image: {error}") from error
    return arrays


def _pictures(part: Any, column: str, name: str) -> Iterator[Any]:
    """One after the other, so that only one is in memory at full size."""
    rows = iter(part.select_columns([column]))
    while True:
        try:
            row = next(rows, None)
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{name}: column {column} holds a file that is not an image: {error}") from error
        if row is None:
            return
        yield row[column]


def _arrays(inputs: np.ndarray | list[np.ndarray], part: Any, labels: str, name: str, colour: bool) -> LabelledArrays:
    if not isinstance(inputs, list):
        return inputs, _numbers(part, labels, name)
    arrays = [np.stack([item] * 3, axis=-1) if colour and item.ndim == 2 else item for item in inputs]
    x = stack_pictures(arrays, [f"{name} number {number}" for number in range(len(arrays))])
    return x, _numbers(part, labels, name)


def _numbers(part: Any, column: str, name: str) -> np.ndarray:
    try:
        values = np.asarray(part.with_format("numpy")[column][:])
    except (ValueError, TypeError) as error:
        raise DataError(f"{name}: column {column} is not a rectangular array of numbers: {error}") from error
    if values.dtype.kind not in "fiu":
        raise DataError(f"{name}: column {column} holds {values.dtype} values; numbers are wanted")
    return values
