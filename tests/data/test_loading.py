"""Every source gives split, standardised tensors; every kind of bad data gives one clear line."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from vogn.data import DataError, Preprocessing, load_data, load_inputs, stratified_parts
from vogn.data.huggingface import load_huggingface
from vogn.data.imagefolder import picture_to_array
from vogn.errors import MissingExtraError

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, size=(40, 6, 6, 3), dtype=np.uint8)
LABELS = np.arange(40) % 4


def arrays(**changes):
    """A sound data set with some arrays replaced (``None`` leaves one out)."""
    sound = {"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:8], "y_test": LABELS[:8]}
    return {name: value for name, value in (sound | changes).items() if value is not None}


def test_digits_splits_are_disjoint_stratified_and_standardised():
    data = load_data("digits")
    assert [len(part) for part in (data.train, data.validation, data.test)] == [1258, 180, 359]
    assert data.input_shape == (1, 8, 8) and data.num_classes == 10 and data.augmentation_factor == 1.0
    assert data.train.x.dtype == torch.float32 and data.train.y.dtype == torch.int64
    assert abs(data.train.x.mean()) < 1e-5 and abs(data.train.x.std() - 1) < 1e-3
    rows = torch.cat([data.train.x, data.validation.x, data.test.x]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == 1797  # no two of the digits are equal
    for part in (data.train, data.validation, data.test):
        share = torch.bincount(part.y, minlength=10) / len(part)
        assert (share - 0.1).abs().max() < 0.01


def test_the_split_is_a_function_of_the_seed():
    assert torch.equal(load_data("digits", seed=1).test.x, load_data("digits", seed=1).test.x)
    assert not torch.equal(load_data("digits", seed=1).test.y, load_data("digits", seed=2).test.y)


def test_stratified_parts_partition_the_indices():
    labels = np.repeat([0, 1, 2], [10, 20, 5])
    parts = stratified_parts(labels, [0.2, 0.4], seed=0)
    assert sorted(np.concatenate(parts)) == list(range(35))
    assert [np.bincount(labels[part]).tolist() for part in parts] == [[2, 4, 1], [4, 8, 2], [4, 8, 2]]


def test_npz_images_are_scaled_standardised_per_channel_and_moved_to_channels_first(save):
    data = load_data(save(**arrays()), validation_fraction=0.0)
    scaled = IMAGES.transpose(0, 3, 1, 2) / 255.0
    mean = scaled.mean(axis=(0, 2, 3), keepdims=True)
    std = scaled.std(axis=(0, 2, 3), keepdims=True)
    np.testing.assert_allclose(data.train.x.numpy(), (scaled - mean) / std, atol=1e-5)
    np.testing.assert_allclose(data.test.x.numpy(), ((scaled - mean) / std)[:8], atol=1e-5)
    assert len(data.validation) == 0 and data.class_names == ("0", "1", "2", "3")


def test_npz_features_are_standardised_per_column_and_constant_columns_stay_finite(save):
    features = RNG.normal(size=(40, 3)) * [1.0, 100.0, 0.0] + [5.0, 0.0, 7.0]
    data = load_data(save(**arrays(x_train=features, x_test=features[:8])), validation_fraction=0.0)
    np.testing.assert_allclose(data.train.x.numpy().std(axis=0), [1, 1, 0], atol=1e-5)
    assert data.augmentation is None


@pytest.mark.parametrize("unit", [1e-9, 1e-30, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_standardised_features_do_not_depend_on_their_unit(save, unit, dtype):
    x = RNG.normal(size=(40, 3))
    data = load_data(save(x_train=(x * unit).astype(dtype), y_train=LABELS, x_test=x * unit, y_test=LABELS))
    plain = load_data(save(x_train=x, y_train=LABELS, x_test=x, y_test=LABELS))
    torch.testing.assert_close(data.train.x, plain.train.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_features_keep_their_differences_beside_a_large_offset(save, dtype):
    x = np.round(RNG.normal(size=(40, 3)) * 100)
    offset = (x + 1_700_000_000_000).astype(dtype)  # milliseconds since 1970
    data = load_data(save(x_train=offset, y_train=LABELS, x_test=offset, y_test=LABELS))
    plain = load_data(save(x_train=x, y_train=LABELS, x_test=x, y_test=LABELS))
    torch.testing.assert_close(data.train.x, plain.train.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [1e-3, 0.1, 3.0, 1e4])
def test_columns_that_vary_by_rounding_only_are_not_blown_up(dtype, value):
    column = np.full(10_000, value, dtype)
    column[::2] = np.nextafter(column[0], dtype(np.inf))
    x = np.stack([column, np.full_like(column, value)], axis=1)
    standardised = Preprocessing.fit(x, name="x").apply(x, name="x")
    assert standardised[:, 0].abs().max() <= np.finfo(dtype).eps and (standardised[:, 1] == 0).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_columns_that_vary_by_more_than_rounding_are_standardised(dtype):
    x = (1000 * (1 + 100 * np.finfo(dtype).eps * RNG.normal(size=(400, 2)))).astype(dtype)
    standardised = Preprocessing.fit(x, name="x").apply(x, name="x")
    assert (standardised.std(dim=0, unbiased=False) - 1).abs().max() < 1e-2


def test_a_constant_of_very_many_rows_is_zero():
    x = np.full((1_000_000, 2), 0.1)
    assert (Preprocessing.fit(x, name="x").apply(x, name="x") == 0).all()


def test_npz_takes_a_validation_part_as_it_is(save):
    data = load_data(save(**arrays(x_validation=IMAGES[:4], y_validation=LABELS[:4])))
    assert (len(data.train), len(data.validation), len(data.test)) == (40, 4, 8)


BAD = {
    "nan": ({"x_train": np.full((40, 3), np.nan)}, r"holds NaN or infinity in \d+ of \d+ examples"),
    "infinity in test": ({"x_train": np.ones((40, 3)), "x_test": np.full((8, 3), np.inf)}, r"\[test\] holds NaN"),
    "negative label": ({"y_train": LABELS - 1}, "labels out of range: found -1"),
    "test label out of range": ({"y_test": np.full(8, 9)}, "labels out of range: found 9, but there are 4 classes"),
    "class without examples": ({"y_train": LABELS + 1}, "class-count mismatch: 5 classes, but class 0 has no"),
    "one class": ({"y_train": LABELS * 0}, "has 1 class; a classifier needs at least 2"),
    "fractional label": ({"y_train": LABELS + 0.5}, "labels are whole class numbers"),
    "nan label": ({"y_train": np.full(40, np.nan)}, "40 labels are NaN"),
    "text label": ({"y_train": np.array(["a", "b"] * 20)}, "labels are whole class numbers"),
    "one-hot label": ({"y_train": np.eye(4)[LABELS]}, "labels are one class number per input"),
    "fewer labels": ({"y_train": LABELS[:39]}, "40 inputs but labels of shape"),
    "no labels": ({"y_train": None}, "has x_train but no y_train"),
    "no training part": ({"x_train": None, "y_train": None}, "has no array x_train"),
    "empty": ({"x_train": IMAGES[:0], "y_train": LABELS[:0]}, "holds no examples"),
    "wrong rank": ({"x_train": np.ones(40)}, "allowed are"),
    "other shape in test": ({"x_test": IMAGES[:8, :5]}, r"examples of shape \(3, 5, 6\)"),
    "other numbers in test": ({"x_test": IMAGES[:8] / 255.0}, "were 8-bit integers"),
    "complex": ({"x_train": np.ones((40, 3), complex)}, "inputs are real numbers"),
    "pickled": ({"x_train": np.array([None] * 40, dtype=object)}, "holds pickled objects"),
    "no pixels": ({"x_train": np.ones((40, 0, 5))}, "its examples are empty"),
    "no features": ({"x_train": np.ones((40, 0))}, "its examples are empty"),
    "label beyond memory": ({"y_train": np.r_[LABELS[:39], 10**12]}, "found 1000000000000; class numbers are below"),
    "label beyond int64": ({"y_train": np.r_[LABELS[:39], 1e300]}, "labels out of range: found 1e.300"),
    "infinite label": ({"y_train": np.r_[LABELS[:39], np.inf]}, "labels out of range: found inf"),
    "numbers beyond squares": ({"x_train": RNG.normal(size=(40, 3)) * 1e300}, "too large to standardise"),
    "test far away": (
        {"x_train": RNG.normal(size=(40, 3)), "x_test": np.full((8, 3), 1e200)},
        r"\[test\] holds numbers too far",
    ),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.filterwarnings("error")
def test_bad_archives_are_refused_in_one_line(save, name):
    changes, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        load_data(save(**arrays(**changes)))
    assert "\n" not in str(caught.value)


def test_more_classes_than_asked_for_are_refused(save):
    with pytest.raises(DataError, match="labels out of range: found 3, but there are 3 classes"):
        load_data(save(**arrays()), num_classes=3)


def test_unpickling_never_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "bomb.npz"
    np.savez(path, x_train=np.array([Bomb()], dtype=object), y_train=[0])
    with pytest.raises(DataError, match="pickled"):
        load_data(f"npz:{path}")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut short"])
def test_files_that_are_not_archives_are_refused(tmp_path, content):
    path = tmp_path / "data.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"\.npz archive"):
        load_data(f"npz:{path}")


@pytest.mark.parametrize("spec", ["nonsense", "npz", "npz:", "digits:8", "", "csv:file"])
def test_unknown_descriptions_name_the_allowed_ones(spec):
    with pytest.raises(DataError, match="allowed are digits, npz:FILE, imagefolder:DIR, hf:NAME"):
        load_data(spec)


@pytest.mark.parametrize("spec", ["npz:/nowhere.npz", "imagefolder:/nowhere"])
def test_missing_files_are_named(spec):
    with pytest.raises(DataError, match="no such .*nowhere"):
        load_data(spec)


def test_preprocessing_survives_a_round_trip_through_plain_values():
    fitted = Preprocessing.fit(IMAGES, name="x")
    assert Preprocessing.from_dict(fitted.to_dict()) == fitted


def test_a_stored_preprocessing_is_used_instead_of_a_new_one(save):
    first = load_data(save(**arrays()))
    other = save(**arrays(x_train=IMAGES // 2, x_test=IMAGES[:8] // 2))
    data = load_data(other, preprocessing=first.preprocessing)
    assert data.preprocessing == first.preprocessing
    assert data.train.x.mean() < -0.5


def test_inputs_are_called_x_or_stand_alone(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=IMAGES, other=LABELS)
    np.testing.assert_array_equal(load_inputs(path), IMAGES)
    np.savez(path, images=IMAGES)
    np.testing.assert_array_equal(load_inputs(path), IMAGES)
    np.savez(path, images=IMAGES, other=LABELS)
    with pytest.raises(DataError, match="wanted is one array called x"):
        load_inputs(path)


def write_folder(root, parts, mode="RGB", size=(6, 6)):
    for part in parts:
        for label in ("cat", "dog"):
            folder = root / part / label
            folder.mkdir(parents=True)
            for number in range(10):
                level = 20 * number + (100 if label == "dog" else 0) % 256
                Image.new(mode, size, level if mode == "L" else (level, 0, 0)).save(folder / f"{number}.png")


def test_imagefolder_with_parts(tmp_path):
    write_folder(tmp_path, ["train", "test"])
    data = load_data(f"imagefolder:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (18, 2, 20)
    assert data.class_names == ("cat", "dog") and data.input_shape == (3, 6, 6)


def test_imagefolder_without_parts_is_split_at_random(tmp_path):
    write_folder(tmp_path, [""], mode="L")
    data = load_data(f"imagefolder:{tmp_path}")
    assert (len(data.train), len(data.validation), len(data.test)) == (14, 2, 4)
    assert data.input_shape == (1, 6, 6)


def test_imagefolder_of_unequal_sizes_asks_for_image_size(tmp_path):
    write_folder(tmp_path, ["train"])
    Image.new("RGB", (9, 7)).save(tmp_path / "train" / "dog" / "odd.png")
    with pytest.raises(DataError, match=r"odd.png is 9 x 7 pixels.*--image-size"):
        load_data(f"imagefolder:{tmp_path}")
    assert load_data(f"imagefolder:{tmp_path}", image_size=5).input_shape == (3, 5, 5)


def test_imagefolder_with_a_damaged_or_no_image_says_so(tmp_path):
    write_folder(tmp_path, ["train"])
    (tmp_path / "train" / "cat" / "broken.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match="broken.png cannot be read as an image"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no images"):
        load_data(f"imagefolder:{tmp_path / 'empty'}")


def test_imagefolder_with_another_class_in_test_is_a_class_count_mismatch(tmp_path):
    write_folder(tmp_path, ["train", "test"])
    (tmp_path / "test" / "bird").mkdir()
    with pytest.raises(DataError, match="class-count mismatch.*'bird'"):
        load_data(f"imagefolder:{tmp_path}")


def test_images_of_more_than_8_bits_are_refused_instead_of_cut_off(tmp_path):
    write_folder(tmp_path / "folder", ["train"], mode="L")
    deep = Image.fromarray(RNG.integers(0, 65536, size=(6, 6)).astype(np.uint16))
    deep.save(tmp_path / "folder" / "train" / "cat" / "deep.png")
    with pytest.raises(DataError, match=r"deep.png .* more than 8 bits"):
        load_data(f"imagefolder:{tmp_path / 'folder'}")
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    rows = {"img": [Image.new("L", (6, 6))] * 19 + [deep], "label": [0, 1] * 10}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"number 19 .* more than 8 bits"):
        load_data(f"hf:{tmp_path / 'set'}")


def test_an_image_too_large_to_be_true_is_refused(tmp_path, monkeypatch):
    write_folder(tmp_path, ["train"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(DataError, match="decompression bomb"):
        load_data(f"imagefolder:{tmp_path}")


def test_huggingface_pictures_are_coloured_if_any_is_and_none_may_be_missing(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    pictures = [Image.new("L", (6, 6), 7)] + [Image.new("RGB", (6, 6), (9, 0, 0))] * 19
    rows = {"img": pictures, "label": [0, 1] * 10}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    assert load_data(f"hf:{tmp_path / 'set'}").input_shape == (3, 6, 6)
    rows["img"][3] = None
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "gap")
    with pytest.raises(DataError, match="number 3 has no image"):
        load_data(f"hf:{tmp_path / 'gap'}")


def test_huggingface_pictures_are_brought_to_size_one_at_a_time(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    grey = [Image.fromarray(RNG.integers(0, 256, size=(9, 12), dtype=np.uint8)) for _ in range(10)]
    coloured = [Image.fromarray(RNG.integers(0, 256, size=(8, 7, 3), dtype=np.uint8)) for _ in range(10)]
    rows = {"img": grey + coloured, "label": [0, 1] * 10}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    decode, decoded, kept = datasets.Image.decode_example, [], []

    def decode_example(self, value, token_per_repo_id=None):
        decoded.append(decode(self, value, token_per_repo_id=token_per_repo_id))
        return decoded[-1]

    def to_array(picture, **options):
        kept.append(picture_to_array(picture, **options))
        assert len(decoded) == len(kept)
        return kept[-1]

    monkeypatch.setattr(datasets.Image, "decode_example", decode_example)
    monkeypatch.setattr("vogn.data.huggingface.picture_to_array", to_array)
    x, _ = load_huggingface(str(tmp_path / "set"), image_size=5).train
    expected = [picture_to_array(picture, image_size=5, colour=True) for picture in grey + coloured]
    assert len(kept) == 20 and np.array_equal(x, np.stack(expected))


@pytest.mark.parametrize(("spec", "library"), [("hf:name", "datasets"), ("imagefolder:{}", "PIL")])
def test_a_missing_library_names_the_extra(tmp_path, monkeypatch, spec, library):
    write_folder(tmp_path, ["train"])
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'vogn\[vision\]'"):
        load_data(spec.format(tmp_path))


def test_huggingface_data_set_saved_to_disk(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c", "d"])})
    rows = {"img": [Image.fromarray(image) for image in IMAGES], "label": LABELS.tolist()}
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select(range(8))}).save_to_disk(tmp_path / "set")
    data = load_data(f"hf:{tmp_path / 'set'}", validation_fraction=0.0)
    reference = Preprocessing.fit(IMAGES, name="x").apply(IMAGES, name="x")
    assert torch.equal(data.train.x, reference) and torch.equal(data.test.x, reference[:8])
    assert data.class_names == ("a", "b", "c", "d")


def test_huggingface_table_of_numbers_and_its_faults(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = RNG.normal(size=(40, 3))
    table = datasets.Dataset.from_dict({"features": features.tolist(), "label": LABELS.tolist()})
    table.save_to_disk(tmp_path / "numbers")
    assert load_data(f"hf:{tmp_path / 'numbers'}").input_shape == (3,)
    table.rename_column("label", "answer").save_to_disk(tmp_path / "unlabelled")
    with pytest.raises(DataError, match="none of which is the label column"):
        load_data(f"hf:{tmp_path / 'unlabelled'}")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="cannot be loaded"):
        load_data(f"hf:{tmp_path / 'nothing'}")
