"""Products with few columns are the plain products, in pieces of any size."""

import pytest
import torch

from tiny_models import normal
from vogn.kernels import reference
from vogn.linalg import tall


@pytest.fixture(autouse=True, params=[1 << 18, 100])
def pieces(request, monkeypatch):
    """All rows at once, and many pieces that leave a rest."""
    monkeypatch.setattr(reference, "CACHED_ELEMENTS", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [0, 1, 3, 8, 16, 20])
@pytest.mark.parametrize("rows", [1, 7, 64, 301])
def test_products_are_the_plain_ones(rows, columns, dtype):
    u, w = normal(rows, columns, dtype=dtype), normal(columns, 3, seed=1, dtype=dtype)
    torch.testing.assert_close(tall.gram(u), u.T @ u)
    torch.testing.assert_close(tall.times(u, w), u @ w)
    torch.testing.assert_close(tall.squared_lengths(u), u.square().sum(1))


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weighted_products_are_formed_in_double_precision(dtype, power):
    u, v = normal(301, 3, dtype=dtype), normal(2, 301, seed=2, dtype=dtype)
    d = normal(301, seed=1, dtype=dtype).abs() + 0.1
    before = [x.clone() for x in (d, u, v)]
    square, products = tall.weighted(d, u, v, power)
    wide = u.double()
    torch.testing.assert_close(square, wide.T @ (wide / d.double().unsqueeze(1)), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(products, (v.double() * d.double() ** -power) @ wide, rtol=1e-13, atol=1e-13)
    assert all(torch.equal(x, y) for x, y in zip((d, u, v), before, strict=True)), "inputs were changed"


def test_pieces_cover_all_rows_once():
    u = normal(301, 3)
    assert torch.equal(torch.cat([u[part] for part in tall.pieces(u)]), u)


@pytest.mark.parametrize("columns, expected", [(1, 16), (2, 8), (3, 4), (5, 4), (6, 2), (10, 2), (11, 1), (16, 1)])
def test_rows_are_taken_side_by_side_in_every_piece_but_the_last(columns, expected):
    u = normal(3001, columns, dtype=torch.float32)
    assert tall._side_by_side(u) == expected
    assert tall._side_by_side(u.double()) == 1
    lengths = [len(u[part]) for part in tall.pieces(u)]
    assert all(length % expected == 0 for length in lengths[:-1])
