"""Functions of matrices known on a few directions against the same functions of dense matrices."""

import pytest
import torch

from vogn.errors import NonFiniteStatisticsError
from vogn.linalg import thin_sides
from vogn.linalg.thin_sides import Side, decompose
from vogn.testing.structure_cases import assert_close


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def side(size, columns, lead=(), seed=0):
    """A side with few columns, or a diagonal where there are none."""
    rest = normal(*lead, 1 if columns else size, seed=seed + 50).square()
    return decompose(normal(*lead, size, columns, seed=seed), rest)


def function_of(dense, function):
    values, vectors = torch.linalg.eigh(dense)
    return (vectors * function(values).unsqueeze(-2)) @ vectors.mT


SIDES = [(5, 2), (5, 5), (5, 0), (1, 1)]


@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
@pytest.mark.parametrize(("size", "columns"), SIDES)
def test_functions_of_one_side_are_those_of_the_dense_matrix(size, columns, lead):
    one = side(size, columns, lead)
    dense, v = one.dense(), normal(4, *lead, 3, size, seed=8)
    inverse = function_of(dense, torch.reciprocal)
    assert_close(thin_sides.multiply(v, one, torch.reciprocal), v @ inverse, 1e-10, "inverse")
    assert_close(thin_sides.diagonal(one, torch.reciprocal), inverse.diagonal(dim1=-2, dim2=-1), 1e-10, "diagonal")
    total = sum(copies * values.sum() for values, copies in thin_sides.eigenvalues(one, torch.log))
    assert_close(total, torch.logdet(dense).sum(), 1e-10, "logdet")
    assert_close(one.mean.squeeze(-1), dense.diagonal(dim1=-2, dim2=-1).mean(-1), 1e-12, "mean")
    assert_close(one.plus(0.3).dense(), dense + 0.3 * torch.eye(size).double(), 1e-13, "plus")


@pytest.mark.parametrize("lead", [(), (2,)])
@pytest.mark.parametrize("right", SIDES)
@pytest.mark.parametrize("left", SIDES)
def test_functions_of_two_sides_are_those_of_their_kronecker_product(left, right, lead):
    """``f(S (x) A)`` for a function of the products of eigenvalues that is no product of functions."""
    s, a = side(*left, lead, seed=1), side(*right, lead, seed=2)

    def function(y, x):
        return (y * x + 0.1).reciprocal()

    o, i = left[0], right[0]
    pairs = zip(s.dense().reshape(-1, o, o), a.dense().reshape(-1, i, i), strict=True)
    dense = torch.stack([function_of(torch.kron(p, q), lambda x: (x + 0.1).reciprocal()) for p, q in pairs])
    v = normal(4, *lead, o, i, seed=8)
    expected = torch.einsum("bld,lde->ble", v.reshape(4, len(dense), o * i), dense).reshape(v.shape)
    assert_close(thin_sides.multiply_both(v, s, a, function), expected, 1e-10, "product")
    diagonal = dense.diagonal(dim1=-2, dim2=-1).reshape(*lead, o, i)
    assert_close(thin_sides.diagonal_both(s, a, function), diagonal, 1e-10, "diagonal")
    total = 0.0
    for values, copies in thin_sides.spectrum(s, a, function):
        total = total + copies * values.log().expand(*lead, *values.shape[-2:]).sum()
    assert_close(total, torch.logdet(dense).sum(), 1e-10, "logdet")


def test_what_is_left_across_the_basis_stays_small_where_its_function_is_large():
    """Values of 1 and 1e9: a single projection would leave a rounding error of the vector, times 1e9."""
    one = decompose(normal(40, 3) * 1e4, torch.full((1,), 1e-9, dtype=torch.float64))
    v = one.basis.T.contiguous()
    expected = v / one.values.unsqueeze(-1)
    product = thin_sides.multiply(v, one, torch.reciprocal)
    assert float((product - expected).abs().max()) < 1e-5  # of 1e9: fourteen digits


def test_dependent_columns_are_harmless_and_signs_are_fixed():
    columns = normal(6, 2)
    rest = torch.full((1,), 0.2, dtype=torch.float64)
    one, other = decompose(torch.cat([columns, columns], 1) / 2**0.5, rest), decompose(columns, rest)
    assert_close(one.dense(), other.dense(), 1e-13, "dependent columns")
    assert_close(one.basis.T @ one.basis, torch.eye(4).double(), 1e-13, "orthonormal")
    assert_close(decompose(-columns, rest).basis, other.basis, 1e-12, "signs")


def test_the_dtype_is_that_of_the_columns_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        assert decompose(normal(4, 2).float(), torch.ones(1, dtype=torch.float32)).basis.dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_columns_that_are_not_finite_are_named():
    with pytest.raises(NonFiniteStatisticsError):
        decompose(torch.full((4, 2), float("nan"), dtype=torch.float64), torch.ones(1).double())


def test_a_diagonal_side_has_no_columns():
    one = decompose(torch.zeros(3, 0).double(), torch.tensor([1.0, 2.0, -1e-20]).double())
    assert isinstance(one, Side) and one.copies == 1 and not one.complete
    assert torch.equal(one.dense(), torch.diag(torch.tensor([1.0, 2.0, 0.0]).double()))
