"""Folders of images, one folder per class: ``DIR/train/CLASS/*.png`` with ``DIR/test``, or ``DIR/CLASS/*.png``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vogn.data.errors import DataError
from vogn.data.raw import LabelledArrays, RawData
from vogn.errors import MissingExtraError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".ppm", ".pgm", ".webp", ".tif", ".tiff")
_VALIDATION_FOLDERS = ("validation", "val", "valid")


def load_imagefolder(location: str, *, image_size: int | None) -> RawData:
    """Every image as uint8 ``(H, W)`` (all grey) or ``(H, W, 3)``; classes in alphabetical order."""
    root = Path(location)
    if not root.is_dir():
        raise DataError(f"no such folder: {location}")
    train = root / "train"
    if not train.is_dir():
        return RawData(_read(root, classes := _classes(root), image_size), None, None, tuple(classes))
    classes = _classes(train)
    validation = next((root / name for name in _VALIDATION_FOLDERS if (root / name).is_dir()), None)
    test = root / "test" if (root / "test").is_dir() else None
    for folder in filter(None, (validation, test)):
        unknown = sorted(set(_classes(folder)) - set(classes))
        if unknown:
            raise DataError(f"class-count mismatch: {folder} has the class {unknown[0]!r}, which {train} has not")
    files = {folder: _files(folder, classes) for folder in (train, validation, test) if folder is not None}
    colour = any(_file_is_colour(path) for paths, _ in files.values() for path in paths)
    arrays = {folder: _stack(*listed, image_size, colour) for folder, listed in files.items()}
    return RawData(
        train=arrays[train],
        validation=None if validation is None else arrays[validation],
        test=None if test is None else arrays[test],
        class_names=tuple(classes),
    )


def is_colour(picture: Any) -> bool:
    """Whether a Pillow image has more than grey values (and transparency)."""
    return picture.mode not in ("1", "L", "LA", "La") and not _is_deep(picture)


def _is_deep(picture: Any) -> bool:
    return bool(picture.mode.startswith(("I", "F")))


def picture_to_array(picture: Any, *, image_size: int | None, colour: bool) -> np.ndarray:
    """One Pillow image as uint8; ``image_size`` resizes the shorter side and crops the middle.

    Raises:
        ValueError: grey values of more than 8 bits, which Pillow would cut off at 255.
    """
    if _is_deep(picture):
        raise ValueError(
            f"its grey values have more than 8 bits (mode {picture.mode}); convert it to 8 bits, or give the numbers "
            "as npz:FILE"
        )
    picture = picture.convert("RGB" if colour else "L")
    if image_size is not None and picture.size != (image_size, image_size):
        from PIL import Image

        scale = image_size / min(picture.size)
        size = tuple(max(image_size, round(side * scale)) for side in picture.size)
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        left, top = ((side - image_size) // 2 for side in picture.size)
        picture = picture.crop((left, top, left + image_size, top + image_size))
    return np.asarray(picture, dtype=np.uint8)


def stack_pictures(arrays: Sequence[np.ndarray], names: Sequence[str]) -> np.ndarray:
    """One array of equally large images.

    Raises:
        DataError: the sizes differ; the message names the first odd one.
    """
    for array, name in zip(arrays, names, strict=True):
        if array.shape != arrays[0].shape:
            raise DataError(
                f"{name} is {array.shape[1]} x {array.shape[0]} pixels, but {names[0]} is {arrays[0].shape[1]} x "
                f"{arrays[0].shape[0]}; give --image-size PIXELS to bring all images to one size"
            )
    return np.stack(arrays)


def _classes(folder: Path) -> list[str]:
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(f"{folder} has no class folders; wanted: {folder}/CLASS/*.png")
    return classes


def _files(folder: Path, classes: Sequence[str]) -> tuple[list[Path], list[int]]:
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(path for path in (folder / name).glob("*") if path.suffix.lower() in SUFFIXES)
        paths.extend(found)
        labels.extend([label] * len(found))
    if not paths:
        raise DataError(f"{folder} holds no images; endings that are read: {', '.join(SUFFIXES)}")
    return paths, labels


def _read(folder: Path, classes: Sequence[str], image_size: int | None) -> LabelledArrays:
    paths, labels = _files(folder, classes)
    return _stack(paths, labels, image_size, any(_file_is_colour(path) for path in paths))


def _stack(paths: Sequence[Path], labels: Sequence[int], image_size: int | None, colour: bool) -> LabelledArrays:
    arrays = []
    for path in paths:
        with _open(path) as picture:
            arrays.append(_decode(picture, path, image_size, colour))
    return stack_pictures(arrays, [str(path) for path in paths]), np.asarray(labels, dtype=np.int64)


def _decode(picture: Any, path: Path, image_size: int | None, colour: bool) -> np.ndarray:
    try:
        return picture_to_array(picture, image_size=image_size, colour=colour)
    except (OSError, ValueError, SyntaxError) as error:  # Pillow's decoders raise all three
        raise DataError(f"{path} cannot be read as an image: {error}") from error


def _file_is_colour(path: Path) -> bool:
    with _open(path) as picture:
        return is_colour(picture)


def _open(path: Path) -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("imagefolder: needs Pillow: pip install 'vogn[vision]'") from error
    try:
        return Image.open(path)
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} cannot be read as an image: {error}") from error
