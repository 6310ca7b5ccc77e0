"""Implicit rows are compressed as rows written out in double precision are."""

import math

import pytest
import torch

from tiny_models import normal
from vogn.linalg import low_rank
from vogn.linalg.compression import compress_rows
from vogn.linalg.packed_rows import pack, unpack
from vogn.linalg.patch_rows import PatchRows
from vogn.linalg.patches import Patches
from vogn.linalg.rows import IndexedRows, JoinedRows, Rows


def network(examples=6, columns=1, seed=0):
    """A convolution, a layer with positions, a look-up, a layer with one position and a bare parameter."""
    x = normal(examples, 3, 3, 3, seed=seed)
    index = torch.randint(0, 20, (examples, 2), generator=torch.Generator().manual_seed(seed))
    return JoinedRows(
        (
            PatchRows(Patches(x, (2, 2), (1, 1), (1, 1), 1, True), normal(columns, examples, 4, 9, seed=seed + 1)),
            Rows(normal(examples, 2, 11, seed=seed + 2), normal(columns, examples, 2, 13, seed=seed + 3)),
            IndexedRows(index, normal(columns, examples, 2, 7, seed=seed + 4), 20),
            Rows(normal(examples, 1, 8, seed=seed + 5), normal(columns, examples, 1, 9, seed=seed + 6)),
            Rows(torch.ones(examples, 1, 1).double(), normal(columns, examples, 1, 5, seed=seed + 7)),
        )
    )


def scaled(rows, inputs, gradients, dtype):
    """The same network's rows in other units and another precision."""

    def member(part):
        g = (part.g * gradients).to(dtype)
        if isinstance(part, PatchRows):
            p = part.patches
            x = Patches((p.x * inputs).to(dtype), p.kernel, p.stride, p.dilation, p.groups, False)
            return PatchRows(x, g)
        if isinstance(part, IndexedRows):
            return IndexedRows(part.index, (g.double() * inputs).to(dtype), part.size)
        return Rows((part.a * inputs).to(dtype), g)

    return JoinedRows(tuple(member(part) for part in rows.members))


def flat(rows):
    return rows.dense().flatten(2).flatten(0, 1)


def repeated(rows):
    """Every example twice."""
    return unpack({key: torch.cat([leaf, leaf]) for key, leaf in pack(rows).items()})


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_implicit_rows_are_compressed_as_rows_written_out(rank, columns):
    rows = network(columns=columns)
    size = rows.shape[0]
    u = normal(size, 8, seed=50)
    options = {"decay": 0.9, "weight": 0.1, "rank": rank}
    new, rest = compress_rows(u, unpack(pack(rows)), **options)
    expected, expected_rest = low_rank.compress(u, flat(rows), **options)
    torch.testing.assert_close(new @ new.T, expected @ expected.T, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(rest, expected_rest, rtol=1e-10, atol=1e-12)
    full = 0.9 * u @ u.T + 0.1 * flat(rows).T @ flat(rows)
    torch.testing.assert_close(new.square().sum(1) + rest, full.diagonal(), rtol=1e-12, atol=0)


def test_all_columns_are_the_whole_matrix():
    rows = network()
    u = normal(rows.shape[0], 8, seed=50)
    u[:, 2:] = 0.0  # with 6 rows, rank 8
    new, rest = compress_rows(u, unpack(pack(rows)), decay=0.9, weight=0.1, rank=8)
    full = 0.9 * u @ u.T + 0.1 * flat(rows).T @ flat(rows)
    torch.testing.assert_close(new @ new.T, full, rtol=1e-12, atol=1e-12)
    assert float(rest.max()) < 1e-12


def test_more_columns_than_parameters_are_compressed_through_the_parameters():
    layers = (Rows(normal(9, 1, 3), normal(1, 9, 1, 2, seed=1)), Rows(normal(9, 1, 1), normal(1, 9, 1, 2, seed=2)))
    rows = JoinedRows(layers)
    u = normal(8, 4, seed=50)
    new, rest = compress_rows(u, unpack(pack(rows)), decay=0.9, weight=0.1, rank=4)
    expected, expected_rest = low_rank.compress(u, flat(rows), decay=0.9, weight=0.1, rank=4)
    torch.testing.assert_close(new @ new.T, expected @ expected.T)
    torch.testing.assert_close(rest, expected_rest)


@pytest.mark.parametrize("duplicates", [False, True])
@pytest.mark.parametrize("size", [1e-14, 1e-6, 1.0, 1e6, 1e14])
@pytest.mark.parametrize("units", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("old", [0.0, 1e-3, 1.0, 1e3])
def test_single_precision_is_near_double_precision_with_rows_written_out(old, units, size, duplicates):
    """Inputs in any units, rows of any size, old columns of any size against them.

    What is lost to the best columns is less than rounding of the whole, and the diagonal is exact to rounding.
    """
    rows = scaled(network(), units, size / units, torch.float32)
    layers = repeated(rows) if duplicates else unpack(pack(rows))
    j = flat(rows).double()
    weight = 0.2 if duplicates else 0.1
    u = (normal(rows.shape[0], 4, seed=50) * (old * size)).float()
    new, rest = compress_rows(u, layers, decay=0.9, weight=0.1, rank=4)
    assert new.dtype == rest.dtype == torch.float32
    x = torch.cat([0.9**0.5 * u.double(), weight**0.5 * j.T], 1) / size
    total = float(x.square().sum())
    found = new.double() / size
    diagonal = x.square().sum(1)
    error = (found.square().sum(1) + rest.double() / size**2 - diagonal).abs()
    assert float((error / diagonal.clamp_min(1e-6 * total / len(diagonal))).max()) < 1e-5
    best = torch.linalg.svdvals(x)[:4].square().sum()
    assert abs(float(found.square().sum() - best)) < 1e-6 * total
    outside = torch.linalg.eigvalsh(x @ x.T - found @ found.T)
    assert float(outside.min()) > -2e-6 * total, "what is kept never exceeds the matrix"


@pytest.mark.parametrize("ratio", [1.0, 1e2, 1e4, 1e6, 1e8])
def test_rows_that_span_many_orders_keep_the_diagonal_and_the_large_directions(ratio):
    """The Gram matrix squares their condition: weak directions are lost to the diagonal, never made up."""
    rows = network()
    spread = torch.logspace(0, -math.log10(ratio), 6, dtype=torch.float64).view(1, -1, 1, 1)
    rows = scaled(JoinedRows(tuple(part.changed(g=part.g * spread) for part in rows.members)), 1.0, 1.0, torch.float32)
    j = flat(rows).double()
    u = torch.zeros(rows.shape[0], 6)
    new, rest = compress_rows(u, unpack(pack(rows)), decay=0.9, weight=1.0, rank=6)
    full, found = j.T @ j, new.double() @ new.double().T
    assert float((found.diagonal() + rest.double() - full.diagonal()).abs().max()) < 2e-6 * float(full.diagonal().max())
    assert float(torch.linalg.matrix_norm(full - found, 2)) < 2e-6 * float(torch.linalg.matrix_norm(full, 2))
