"""Rows against several columns: every product is that of the rows written out."""

import math

import pytest
import torch

from tiny_models import normal
from vogn.kernels import reference
from vogn.linalg.column_products import combine, products, written
from vogn.linalg.patch_rows import PatchRows
from vogn.linalg.patches import Patches
from vogn.linalg.rows import GradientRow, IndexedRows, Rows


def pairs(*shape, examples=5, columns=1, positions=1):
    *lead, d_out, d_in = shape
    a = normal(*lead, examples, positions, d_in, seed=1)
    return Rows(a, normal(*lead, columns, examples, positions, d_out, seed=2))


def patches(kernel=(3, 3), groups=1, bias=True, columns=2, examples=4, d_out=2):
    found = Patches(normal(examples, 4, 6, 5, seed=1), kernel, (1, 1), (1, 1), groups, bias)
    lead = (groups,) if groups > 1 else ()
    return PatchRows(found, normal(*lead, columns, examples, math.prod(found.out), d_out, seed=2))


def look_ups(columns=2):
    index = torch.tensor([[0, 2, 2], [1, 3, 0], [2, 2, 2], [0, 1, 2]])
    return IndexedRows(index, normal(columns, 4, 3, 5, seed=2), 4)


KINDS = {
    "one position": pairs(3, 4),
    "one position, columns": pairs(3, 4, columns=3),
    "one position, sub-blocks": pairs(2, 3, 4, columns=2),
    "written out": pairs(7, 1, columns=2),
    "channels": pairs(6, 2, 1),
    "positions": pairs(3, 4, positions=6),
    "few positions, many examples": pairs(40, 30, positions=2, examples=3),  # inner products by pairs
    "positions, columns, sub-blocks": pairs(2, 3, 4, positions=3, columns=2),
    "no examples": pairs(3, 4, examples=0, positions=2),
    "convolution": patches(),
    "convolution without bias": patches(bias=False),
    "convolution in groups": patches(groups=2),
    "depthwise convolution": patches(groups=4, d_out=1),
    "convolution at points": patches(kernel=(1, 1)),
    "convolution that sees all": patches(kernel=(6, 5)),
    "look-ups": look_ups(),
}


@pytest.fixture(params=[1 << 18, 40, 1])
def pieces(request, monkeypatch):
    """All at once, some, and the smallest pieces there are."""
    monkeypatch.setattr(reference, "CACHED_ELEMENTS", request.param)
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", request.param)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_every_product_is_that_of_rows_written_out(name, rank, pieces):
    rows = KINDS[name]
    size = math.prod(rows.shape)
    j, u = rows.dense().reshape(-1, size), normal(size, rank, seed=3)
    found = products(rows, u)
    torch.testing.assert_close(found.gram, j @ j.T)
    torch.testing.assert_close(found.cross, j @ u)
    torch.testing.assert_close(found.squares, j.square().sum(0))
    c, out = normal(len(j), rank, seed=4), u.clone()
    combine(rows, c, out)
    torch.testing.assert_close(out, u + j.T @ c)


@pytest.mark.parametrize("name", [name for name, rows in KINDS.items() if isinstance(rows, Rows)])
def test_pieces_written_out_are_the_rows(name, pieces):
    rows = KINDS[name]
    j = rows.dense().reshape(rows.columns * rows.count, math.prod(rows.shape[:-2]), *rows.shape[-2:])
    seen = torch.zeros(j.shape[1:])
    for part, explicit in written(rows):
        expected = j[(slice(None), *part)]
        torch.testing.assert_close(explicit.view_as(expected), expected)
        seen[part] += 1
    assert bool((seen == 1).all()), "every element of a row is written once"


def test_pieces_are_small(monkeypatch):
    monkeypatch.setattr(reference, "CACHED_ELEMENTS", 320)
    for name in ("positions", "positions, columns, sub-blocks", "written out", "convolution in groups"):
        assert all(explicit.numel() <= 320 for _, explicit in written(KINDS[name])), name


def test_a_gradient_is_not_asked():
    row = GradientRow(normal(3, 4))
    for call in (lambda: products(row, normal(12, 2)), lambda: combine(row, normal(1, 2), normal(12, 2))):
        with pytest.raises(NotImplementedError, match="GradientRow"):
            call()
    with pytest.raises(NotImplementedError, match="IndexedRows"):
        written(look_ups())
