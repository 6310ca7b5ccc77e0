"""Corruptions by hand and against scipy: determined by the seed, worse with severity, in either unit."""

import pytest
import torch
from scipy.ndimage import gaussian_filter

from vogn.data import CORRUPTIONS, SEVERITIES, DataError, corrupt, load_data
from vogn.data.corruptions import _rotation


@pytest.fixture
def images():
    """``(6, 2, 12, 10)`` in [0.2, 0.8], smooth enough for interpolation."""
    x = torch.rand(6, 2, 12, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 0.2 + 0.6 * torch.nn.functional.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_zero_is_a_copy_and_the_seed_decides(images, name):
    kept = images.clone()
    same = corrupt(images, name, 0)
    assert torch.equal(same, images) and same.data_ptr() != images.data_ptr()
    for severity in SEVERITIES:
        found = corrupt(images, name, severity, seed=3)
        assert found.shape == images.shape and found.dtype == images.dtype
        assert float(found.min()) >= 0 and float(found.max()) <= 1
        assert torch.equal(found, corrupt(images, name, severity, seed=3))
        assert torch.equal(found, corrupt(images, name, severity, seed=4)) == (name != "gaussian_noise")
    assert torch.equal(images, kept)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_more_severe_is_farther_away(images, name):
    distances = [float((corrupt(images, name, severity) - images).square().mean()) for severity in range(6)]
    assert distances == sorted(distances) and len(set(distances)) == 6


def test_noise_has_the_standard_deviation_that_it_says():
    grey = torch.full((50, 1, 30, 30), 0.5, dtype=torch.float64)
    noise = corrupt(grey, "gaussian_noise", 2) - grey
    assert float(noise.std()) == pytest.approx(0.1, rel=0.02)  # 45,000 values: standard error 0.3 %
    assert float(noise.mean()) == pytest.approx(0.0, abs=0.002)


def test_blur_equals_scipy(images):
    for severity, sigma in zip(SEVERITIES, (0.4, 0.6, 0.8, 1.0, 1.5), strict=True):
        found = corrupt(images, "blur", severity)
        for n, c in ((0, 0), (5, 1)):
            radius = int(-(-3 * sigma // 1))
            expected = gaussian_filter(images[n, c].numpy(), sigma, mode="nearest", radius=radius)
            torch.testing.assert_close(found[n, c], torch.from_numpy(expected))


def test_contrast_by_hand(images):
    found = corrupt(images, "contrast", 5)
    image = images[1, 0]
    torch.testing.assert_close(found[1, 0], image.mean() + 0.15 * (image - image.mean()))


def test_rotation_turns_counter_clockwise_and_keeps_distances(images):
    square = images[..., :10, :]
    torch.testing.assert_close(_rotation(square, 90.0, 0), square.rot90(1, (2, 3)))
    # a spot 4 pixels to the right of the centre of a wide image, turned by 60 degrees, is 2 right and 3.46 up
    wide = torch.zeros(1, 1, 21, 41, dtype=torch.float64)
    wide[0, 0, 10, 24] = 1.0
    turned = corrupt(wide, "rotation", 5)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(21.0), torch.arange(41.0), indexing="ij")
    centre = [float((turned * places).sum() / turned.sum()) for places in (rows, columns)]
    assert centre == pytest.approx([10 - 4 * 3**0.5 / 2, 20 + 2], abs=0.15)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_standardised_images_are_the_same_pictures(images, name):
    mean, std = (30.0, 50.0), (7.0, 20.0)
    low, high = 10.0, 110.0
    shift, scale = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
    standardised = (images * (high - low) + low - shift) / scale
    found = corrupt(standardised, name, 3, value_range=(low, high), mean=mean, std=std)
    expected = (corrupt(images, name, 3) * (high - low) + low - shift) / scale
    torch.testing.assert_close(found, expected)


def test_digits():
    data = load_data("digits")
    how = {"value_range": (0, 16), "mean": data.preprocessing.mean, "std": data.preprocessing.std}
    found = corrupt(data.test.x, "gaussian_noise", 5, **how)
    raw = found * data.preprocessing.std[0] + data.preprocessing.mean[0]
    assert found.dtype == torch.float32
    assert float(raw.min()) == pytest.approx(0.0, abs=1e-5) and float(raw.max()) == pytest.approx(16.0, abs=1e-4)


def test_illegal_input_raises(images):
    for arguments, options, message in [
        ((images, "snow", 1), {}, "unknown corruption 'snow'; known corruptions: blur"),
        ((images, "blur", 6), {}, "severity=6"),
        ((images, "blur", 0.5), {}, "severity=0.5"),
        ((images[0], "blur", 1), {}, r"torch.float64 \(2, 12, 10\)"),
        ((images.long(), "blur", 1), {}, "torch.int64"),
        ((images[:0], "blur", 1), {}, r"\(0, 2, 12, 10\)"),
        ((images * 255, "blur", 1), {}, "outside value_range=.* give mean= and std="),
        ((images / 0, "blur", 1), {}, "outside value_range"),
        ((images, "blur", 1), {"mean": (0.0, 0.0)}, "mean and std belong together"),
        ((images, "blur", 1), {"mean": (0.0,), "std": (1.0,)}, "mean has 1 values but the images have 2 channels"),
        ((images, "blur", 1), {"mean": (0.0, 0.0), "std": (1.0, 0.0)}, "std must be positive"),
        ((images, "blur", 1), {"value_range": (1, 0)}, "the smallest value first"),
    ]:
        with pytest.raises(DataError, match=message):
            corrupt(*arguments, **options)
