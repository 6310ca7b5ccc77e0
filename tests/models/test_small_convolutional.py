"""The small convolutional body: shapes, sizes, norms, refusals."""

import pytest
import torch

from vogn.models import small_convolutional


@pytest.mark.parametrize("norm", ["frn", "group", "batch"])
def test_features_are_four_widths_whatever_the_image(norm):
    body = small_convolutional(in_channels=2, width=3, norm=norm).eval()
    for side in (4, 8, 32):
        assert body(torch.randn(5, 2, side, side)).shape == (5, 12)
    assert bool(list(body.buffers())) == (norm == "batch")


def test_the_number_of_parameters_is_the_stated_one():
    """Weights 9 (3 w + 2 w w + 8 w w) and three numbers of filter response norm per channel, w = 16."""
    count = sum(p.numel() for p in small_convolutional().parameters())
    assert count == 9 * (3 * 16 + 2 * 16 * 16 + 8 * 16 * 16) + 3 * (16 + 32 + 64) == 23_808


def test_examples_do_not_see_each_other():
    body, x = small_convolutional(), torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(body(x)[1:2], body(x[1:2]))


def test_ranges():
    with pytest.raises(ValueError, match="width=0"):
        small_convolutional(width=0)
    with pytest.raises(ValueError, match="known norms: batch, group, frn"):
        small_convolutional(norm="layer")
