from __future__ import annotations

import pytest
import torch

from vogn.kernels import reference
from vogn.linalg import factors
from vogn.linalg.rows import IndexedRows, Rows


def rows_of(*lead: int) -> Rows:
    source = torch.Generator().manual_seed(0)
    a = torch.randn(*lead, 5, 3, 4, generator=source, dtype=torch.float64)
    g = torch.randn(*lead, 2, 5, 3, 2, generator=source, dtype=torch.float64)
    return Rows(a, g)


def look_ups() -> IndexedRows:
    index = torch.randint(4, (5, 3), generator=torch.Generator().manual_seed(1))
    return IndexedRows(index, rows_of().g, 4)


@pytest.mark.parametrize("elements", [1, 40, 1 << 22])
@pytest.mark.parametrize("rows", [rows_of(), rows_of(3), look_ups()], ids=["rows", "groups", "look-ups"])
def test_contractions_do_not_depend_on_the_chunk(monkeypatch, rows, elements):
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", elements)
    right, left = factors.contractions(rows)
    dense = rows.dense().flatten(0, 1)
    torch.testing.assert_close(right, (dense.mT @ dense).sum(0))
    torch.testing.assert_close(left, (dense @ dense.mT).sum(0))


@pytest.mark.parametrize("elements", [1, 40, 1 << 22])
@pytest.mark.parametrize("turns_rows", [True, False])
@pytest.mark.parametrize("rows", [rows_of(), rows_of(3), look_ups()], ids=["rows", "groups", "look-ups"])
def test_rotated_squares_are_squares_of_rotated_rows(monkeypatch, rows, turns_rows, elements):
    monkeypatch.setattr(factors, "_turns_rows", lambda *operands: turns_rows)
    monkeypatch.setattr(reference, "CHUNK_ELEMENTS", elements)
    source = torch.Generator().manual_seed(2)
    *lead, o, i = rows.shape
    qs = torch.linalg.qr(torch.randn(*lead, o, o, generator=source, dtype=torch.float64))[0]
    qa = torch.linalg.qr(torch.randn(*lead, i, i, generator=source, dtype=torch.float64))[0]
    expected = (qs.mT @ rows.dense() @ qa).square().sum((0, 1))
    torch.testing.assert_close(factors.rotated_squares(rows, qs, qa), expected)


def test_rows_are_turned_where_positions_are_many():
    def turns(positions, d_out, d_in, *, axes=False):
        rows = Rows(torch.ones(2, positions, d_in), torch.ones(1, 2, positions, d_out))
        return factors._turns_rows(rows, torch.eye(d_out), torch.ones(1, d_in) if axes else torch.eye(d_in))

    assert turns(1024, 16, 144)  # 16 * 144 * (16 + 144) = 3.7e5 beside 1024 * (16^2 + 144^2) = 2.2e7 multiply-adds
    assert not turns(64, 256, 256) and turns(600, 256, 256)
    assert not turns(1, 1, 1)
    assert turns(20, 4, 16, axes=True) and not turns(10, 4, 16, axes=True)  # 4^2 * 16 beside positions * 4^2


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_look_ups_have_the_factors_of_their_one_hot_inputs(sharing):
    rows = look_ups()
    for left, right in zip(
        factors.kronecker_factors(rows, sharing), factors.kronecker_factors(Rows(rows.a, rows.g), sharing), strict=True
    ):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_no_examples_give_zero_factors(sharing):
    empty = Rows(rows_of().a[:0], rows_of().g[:, :0])
    for factor in (*factors.kronecker_factors(empty, sharing), *factors.contractions(empty)):
        assert not factor.any()


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("rows", [rows_of(), rows_of(3), look_ups()], ids=["rows", "groups", "look-ups"])
def test_diagonal_factors_are_the_diagonals_of_the_factors(rows, sharing):
    for whole, parts in (
        (factors.kronecker_factors(rows, sharing)[:2], factors.kronecker_factors(rows, sharing, (True, True))[:2]),
        (factors.contractions(rows), factors.contractions(rows, (True, True))),
    ):
        for matrix, diagonal in zip(whole, parts, strict=True):
            torch.testing.assert_close(diagonal.squeeze(-2), matrix.diagonal(dim1=-2, dim2=-1))


@pytest.mark.parametrize("rows", [rows_of(), rows_of(3), look_ups()], ids=["rows", "groups", "look-ups"])
def test_a_side_that_keeps_its_axes_is_not_rotated(rows):
    *lead, o, i = rows.shape
    qs = torch.linalg.qr(torch.randn(*lead, o, o, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    axes = torch.ones(*lead, 1, i, dtype=torch.float64)
    expected = (qs.mT @ rows.dense()).square().sum((0, 1))
    torch.testing.assert_close(factors.rotated_squares(rows, qs, axes), expected)
    torch.testing.assert_close(factors.rotated_squares(rows, axes[..., :o], axes), rows.dense().square().sum((0, 1)))


def test_the_count_behind_the_input_factor_is_the_number_of_inputs():
    mask = torch.tensor([[1, 1, 0]] * 4 + [[0, 0, 0]], dtype=torch.bool)
    masked = Rows(rows_of().a, rows_of().g * mask.unsqueeze(-1), mask)
    assert [float(factors.kronecker_factors(rows, "expand")[2]) for rows in (rows_of(), masked)] == [15.0, 8.0]
    assert [float(factors.kronecker_factors(rows, "reduce")[2]) for rows in (rows_of(), masked)] == [5.0, 4.0]
