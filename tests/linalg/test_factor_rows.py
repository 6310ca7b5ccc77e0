"""Rows of Kronecker factors: their products are the factors, and there are never more of them than columns."""

import pytest
import torch

from vogn.errors import UnsupportedObservationError
from vogn.linalg.factor_rows import factor_rows
from vogn.linalg.factors import kronecker_factors
from vogn.linalg.rows import GradientRow, IndexedRows, JoinedRows, Rows
from vogn.testing.structure_cases import assert_close, random_rows

DIAGONALS = [(False, False), (True, False), (False, True), (True, True)]


def kinds():
    several = random_rows((3, 4), seed=0, examples=6, columns=2, positions=5)
    mask = torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 0]).unsqueeze(1)
    yield "few rows", random_rows((3, 4), seed=1, examples=2)
    yield "many rows", several
    yield "masked", Rows(several.a, several.g * mask.unsqueeze(-1), mask)
    yield "groups", random_rows((2, 3, 4), seed=2, examples=5, positions=3)
    index = torch.tensor([[0, 2, 2, 1, 0], [1, 3, 0, 0, 0]])
    yield "look-ups", IndexedRows(index, random_rows((3, 1), seed=3, examples=2, positions=5).g, 4)
    yield "masked look-ups", IndexedRows(index, several.g[:, :2] * mask[2:4].unsqueeze(-1), 4, mask[2:4])


@pytest.mark.parametrize("diagonal", DIAGONALS)
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize(("name", "rows"), kinds(), ids=lambda value: value if isinstance(value, str) else "")
def test_products_of_rows_are_the_factors(name, rows, sharing, diagonal):
    a, g, count = factor_rows(rows, sharing, 1, diagonal)
    inputs, outputs, expected = kronecker_factors(rows, sharing, diagonal)
    for found, factor, flat in ((a, inputs, diagonal[1]), (g, outputs, diagonal[0])):
        product = found.square() if flat else found.mT @ found
        assert_close(product, factor, 1e-12, name)
        assert found.shape[-2] <= (1 if flat else found.shape[-1])
    assert torch.equal(count, expected)


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_a_stride_counts_the_positions_that_it_keeps(sharing):
    rows = random_rows((3, 4), seed=0, examples=6, positions=5)
    mask = torch.tensor([1, 1, 1, 1, 0], dtype=torch.bool).expand(6, 5)
    count = factor_rows(Rows(rows.a, rows.g * mask.unsqueeze(-1), mask), sharing, 2)[2]
    assert int(count) == (12 if sharing == "expand" else 6)
    assert int(factor_rows(rows, sharing, 7)[2]) == 6


def test_rows_without_a_pair_are_refused():
    for rows in (GradientRow(torch.ones(3, 4)), JoinedRows((random_rows((3, 4), seed=0),))):
        for stride in (1, 2):
            with pytest.raises(UnsupportedObservationError, match="inputs and output gradients of one layer"):
                factor_rows(rows, "expand", stride)
