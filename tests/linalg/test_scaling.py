from __future__ import annotations

import math

import pytest
import torch

from vogn.linalg.scaling import normalise


def spd(dtype: torch.dtype = torch.float64) -> torch.Tensor:
    root = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (root @ root.T).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("exponent", [-90, -7, 0, 3, 90])
def test_the_scale_is_a_power_of_four_and_changes_no_digit(dtype, exponent):
    matrix = spd(dtype) * 2.0**exponent
    normalised, scale = normalise(matrix)
    assert torch.equal(normalised * scale, matrix)
    assert math.log2(float(scale)) % 2 == 0
    assert 0.25 <= float(normalised.trace()) / 4 <= 4.0


def test_every_matrix_of_a_batch_has_its_own_scale():
    batch = torch.stack([spd() * 1e-20, spd() * 1e20])
    normalised, scale = normalise(batch)
    for k in range(2):
        alone, alone_scale = normalise(batch[k])
        assert torch.equal(normalised[k], alone) and scale[k] == alone_scale


def test_rounding_that_breaks_symmetry_is_averaged():
    matrix = spd()
    matrix[0, 1] += 1e-12
    normalised, scale = normalise(matrix)
    assert torch.equal(normalised, normalised.T)
    torch.testing.assert_close(normalised * scale, (matrix + matrix.T) / 2, rtol=1e-15, atol=0)


@pytest.mark.parametrize("value", [0.0, 1e-45, 3e38, math.nan, math.inf])
def test_the_ends_of_the_range_neither_overflow_nor_hide_bad_numbers(value):
    matrix = torch.full((3, 3), value)
    normalised, scale = normalise(matrix)
    assert 2.0**-100 <= float(scale) <= 2.0**100 and float(1 / scale) > 0
    assert bool(normalised.isfinite().all()) == math.isfinite(value)
