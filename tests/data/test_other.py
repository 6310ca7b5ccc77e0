"""Inputs of other data sets are brought into the form of a run, and what was done is said."""

import numpy as np
import pytest
import torch
from PIL import Image

from vogn.data import DataError, Preprocessing, load_other


def images(count, side, channels=1, dtype=np.uint8):
    shape = (count, side, side) if channels == 1 else (count, side, side, channels)
    values = np.random.default_rng(0).integers(0, 256, size=shape)
    return values.astype(dtype)


GREY = Preprocessing.fit(images(20, 8), name="train")
COLOUR = Preprocessing.fit(images(20, 8, 3), name="train")


def raw(x, preprocessing):
    """Back in [0, 1]."""
    shape = (1, len(preprocessing.mean), 1, 1)
    return x * torch.tensor(preprocessing.std).view(shape) + torch.tensor(preprocessing.mean).view(shape)


def test_what_fits_is_taken_as_it_is_whatever_its_labels(save):
    x = images(6, 8)
    for arrays in (
        {"x_train": images(3, 8), "y_train": np.arange(3) + 90, "x_test": x, "y_test": np.full(6, 77)},
        {"x_train": x},
        {"x": x},
    ):
        found, changes = load_other(save(**arrays), GREY)
        assert changes == []
        assert torch.equal(found, GREY.apply(x, name="x"))


def test_grey_images_get_three_equal_channels(save):
    x = images(5, 8)
    found, changes = load_other(save(x=x), COLOUR)
    assert changes == ["grey images repeated in 3 channels"]
    expected = torch.tensor(x).float().unsqueeze(1).expand(-1, 3, -1, -1) / 255
    torch.testing.assert_close(raw(found, COLOUR), expected, atol=1e-6, rtol=0)


def test_colour_images_turn_grey_as_in_pillow(save):
    x = images(5, 8, 3)
    found, changes = load_other(save(x=x), GREY)
    assert changes == ["colour images turned grey"]
    expected = np.stack([np.asarray(Image.fromarray(each).convert("L")) for each in x])
    assert np.abs(raw(found, GREY).squeeze(1).numpy() * 255 - expected).max() <= 1 + 1e-3  # Pillow rounds down


@pytest.mark.parametrize("side", [16, 4, 13])
def test_other_sizes_are_resized_as_in_pillow(save, side):
    x = images(5, side)
    found, changes = load_other(save(x=x), GREY)
    assert changes == [f"resized from {side} x {side} to 8 x 8 pixels"]
    expected = np.stack([np.asarray(Image.fromarray(each).resize((8, 8), Image.Resampling.BILINEAR)) for each in x])
    assert np.abs(raw(found, GREY).squeeze(1).numpy() * 255 - expected).max() <= 1 + 1e-3  # Pillow rounds twice


def test_numbers_between_0_and_1_are_taken_for_8_bit_images(save):
    x = images(5, 8)
    found, changes = load_other(save(x=x / 255.0), GREY)
    assert changes == ["numbers in [0, 1] multiplied by 255"]
    torch.testing.assert_close(found, GREY.apply(x, name="x"))


def test_image_files_are_read_at_the_size_of_the_run(tmp_path):
    for number, side in enumerate((10, 20)):
        folder = tmp_path / "pictures" / "class"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images(1, side)[0]).save(folder / f"{number}.png")
    found, changes = load_other(f"imagefolder:{tmp_path / 'pictures'}", COLOUR)
    assert found.shape == (2, 3, 8, 8) and changes == ["grey images repeated in 3 channels"]


@pytest.mark.parametrize(
    ("x", "preprocessing", "words"),
    [
        (images(4, 8, dtype=np.float32), GREY, r"outside \[0, 1\]"),
        (images(4, 8), Preprocessing.fit(images(9, 8, dtype=np.float32), name="t"), "holds uint8"),
        (images(4, 8, 4), COLOUR, r"\(4, 8, 8\)"),
        (np.zeros((4, 7)), Preprocessing.fit(np.random.rand(5, 3), name="t"), r"\(7,\).*\(3,\)"),
        (np.zeros((4, 7)), COLOUR, "float"),
        (np.full((4, 8, 8), np.nan), GREY, r"outside \[0, 1\]"),
        (np.zeros((0, 8, 8), np.uint8), GREY, "no examples"),
        (np.array([["a"]]), GREY, "real numbers|holds"),
    ],
)
def test_what_cannot_be_adapted_is_refused(save, x, preprocessing, words):
    with pytest.raises(DataError, match=words):
        load_other(save(x=x), preprocessing)


def test_empty_parts_are_refused(save):
    with pytest.raises(DataError, match=r"\[x_test\] holds no examples"):
        load_other(save(x_train=images(3, 8), x_test=images(0, 8)), GREY)


def test_unknown_data():
    with pytest.raises(DataError, match="unknown data 'mnist'"):
        load_other("mnist", GREY)
    with pytest.raises(DataError, match="no such file"):
        load_other("npz:/nowhere.npz", GREY)
