"""Every product of rows equals the same product of their dense form."""

import math

import pytest
import torch

from vogn.errors import UnsupportedObservationError
from vogn.linalg.rows import GradientRow, IndexedRows, JoinedRows, Rows


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pair(lead, k, n, t, d_out, d_in, seed=0):
    return Rows(normal(*lead, n, t, d_in, seed=seed), normal(*lead, k, n, t, d_out, seed=seed + 1))


def indexed(k, n, t, mask=None, seed=0):
    index = torch.randint(0, 6, (n, t), generator=torch.Generator().manual_seed(seed))
    g = normal(k, n, t, 3, seed=seed)
    return IndexedRows(index, g if mask is None else g * mask.unsqueeze(-1), size=6, mask=mask)


def loop(rows):
    """The definition, one example and column at a time."""
    a, g = rows.a.reshape(-1, *rows.a.shape[-3:]), rows.g.reshape(-1, *rows.g.shape[-4:])
    out = torch.zeros(rows.columns, rows.count, *rows.shape, dtype=torch.float64)
    view = out.view(rows.columns, rows.count, -1, *rows.shape[-2:])
    for lead in range(len(a)):
        for k in range(rows.columns):
            for n in range(rows.count):
                for t in range(a.shape[2]):
                    view[k, n, lead] += torch.outer(g[lead, k, n, t], a[lead, n, t])
    return out


CASES = {
    "linear": pair((), 1, 4, 1, 3, 2),
    "several columns": pair((), 3, 4, 1, 3, 2),
    "several positions": pair((), 2, 4, 3, 3, 2),
    "groups": pair((2,), 3, 4, 3, 3, 2),
    "groups, as many as examples": pair((4,), 2, 4, 1, 3, 2),
    "groups, one position": pair((2,), 3, 4, 1, 3, 2),
    "norm": pair((5,), 3, 4, 1, 2, 1),
    "bare": pair((7,), 2, 4, 1, 1, 1),
    "two leading dimensions": pair((2, 3), 2, 4, 2, 2, 3),
    "one example": pair((), 2, 1, 3, 3, 2),
    "indexed": indexed(1, 4, 1),
    "indexed, repeated entries": indexed(3, 4, 8),
    "indexed, masked": indexed(2, 4, 8, mask=torch.rand(4, 8, generator=torch.Generator().manual_seed(2)) > 0.4),
    "gradient": GradientRow(normal(3, 4)),
    "gradient with leading dimension": GradientRow(normal(2, 3, 4)),
}
JOINED = {
    "two layers": JoinedRows((CASES["several columns"], CASES["groups"])),
    "layer, norm and table": JoinedRows((CASES["several columns"], CASES["norm"], CASES["indexed, repeated entries"])),
    "gradients": JoinedRows((CASES["gradient"], CASES["gradient with leading dimension"])),
}


@pytest.mark.parametrize("rows", CASES.values(), ids=CASES.keys())
def test_dense_is_the_sum_of_outer_products(rows):
    torch.testing.assert_close(rows.dense(), loop(rows))


@pytest.mark.parametrize("rows", [*CASES.values(), *JOINED.values()], ids=[*CASES, *JOINED])
def test_products_equal_those_of_the_dense_form(rows):
    dense = rows.dense()
    assert dense.shape == (rows.columns, rows.count, *rows.shape)
    flat = dense.reshape(rows.columns * rows.count, -1)
    v, c = normal(*rows.shape, seed=8), normal(rows.columns, rows.count, seed=9)
    torch.testing.assert_close(rows.squares(), dense.square().sum((0, 1)))
    torch.testing.assert_close(rows.gram(), flat @ flat.T)
    torch.testing.assert_close(rows.matvec(v), (flat @ v.flatten()).view_as(c))
    torch.testing.assert_close(rows.rmatvec(c), (c.flatten() @ flat).view(rows.shape))


@pytest.mark.parametrize("rows", JOINED.values(), ids=JOINED.keys())
def test_joined_rows_are_the_members_side_by_side(rows):
    dense, start = rows.dense(), 0
    for member in rows.members:
        size = math.prod(member.shape)
        torch.testing.assert_close(dense[:, :, start : start + size, 0], member.dense().flatten(2))
        start += size
    assert start == rows.shape[0]


def test_members_with_different_numbers_of_examples_raise():
    with pytest.raises(UnsupportedObservationError, match="partition='layer'"):
        JoinedRows((pair((), 1, 4, 1, 3, 2), pair((), 1, 5, 1, 3, 2)))


def test_indexed_rows_equal_rows_of_their_one_hot_inputs():
    table = CASES["indexed, repeated entries"]
    torch.testing.assert_close(table.dense(), Rows(table.a, table.g).dense())
    assert torch.equal(table.a.argmax(-1), table.index)


def test_indexed_squares_add_repeated_entries_of_an_example_before_squaring():
    rows = IndexedRows(torch.tensor([[2, 2], [2, 0]]), torch.ones(1, 2, 2, 1, dtype=torch.float64), size=3)
    assert torch.equal(rows.squares(), torch.tensor([[1.0, 0.0, 5.0]], dtype=torch.float64))
