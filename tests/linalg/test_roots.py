"""Roots by the Denman-Beavers iteration against eigendecompositions, and Nystrom approximations from pivots."""

import pytest
import torch

from vogn.errors import FactorisationError, NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.linalg.roots import denman_beavers, nystrom_columns

REMEDY = "set damping above 0"


def positive_definite(size, condition, batch=(), seed=0):
    """A matrix with geometric eigenvalues from 1 to ``condition``, its roots by its eigendecomposition."""
    source = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn((*batch, size, size), generator=source, dtype=torch.float64)).Q
    x = torch.logspace(0, torch.tensor(condition).log10(), size, dtype=torch.float64)
    return (q * x) @ q.mT, (q * x.sqrt()) @ q.mT, (q * x.rsqrt()) @ q.mT


def relative(actual, expected):
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e5])
@pytest.mark.parametrize(("size", "batch"), [(1, ()), (6, ()), (30, ()), (5, (3,)), (4, (2, 3))])
def test_the_iteration_gives_the_roots_of_the_eigendecomposition(size, batch, condition, scale):
    matrix, root, inverse = positive_definite(size, condition, batch)
    y, z = denman_beavers(matrix * scale, remedy=REMEDY)
    assert relative(y, root * scale**0.5) < 1e-10
    assert relative(z, inverse * scale**-0.5) < 1e-10
    assert relative(y @ y, matrix * scale) < 1e-12
    assert relative(y @ z, torch.eye(size, dtype=torch.float64).expand_as(y)) < 1e-10
    assert torch.equal(y, y.mT) and torch.equal(z, z.mT)


def test_the_iteration_loses_half_of_the_digits_of_the_condition_and_says_so_when_too_few_are_left():
    for condition, tolerance in ((1e8, 1e-8), (1e10, 1e-6)):
        matrix, _, inverse = positive_definite(20, condition)
        assert relative(denman_beavers(matrix, remedy=REMEDY)[1], inverse) < tolerance
    with pytest.raises(NotPositiveDefiniteError, match=f"size 20, has no real root.*{REMEDY}"):
        denman_beavers(positive_definite(20, 1e17)[0], remedy=REMEDY)


def test_single_precision_goes_through_double_precision():
    matrix, root, inverse = positive_definite(8, 1e4)
    y, z = denman_beavers(matrix.float(), remedy=REMEDY)
    assert y.dtype == z.dtype == torch.float32
    assert relative(y.double(), root) < 1e-6 and relative(z.double(), inverse) < 1e-4


@pytest.mark.parametrize(
    "matrix",
    [
        torch.diag(torch.tensor([1.0, -1e-3, 2.0])),
        torch.tensor([[1.0, 2.0], [2.0, 1.0]]),
        torch.zeros(3, 3),
        torch.ones(3, 3),
        -torch.eye(2),
    ],
)
def test_a_matrix_without_a_root_raises_with_the_remedy(matrix):
    with pytest.raises(NotPositiveDefiniteError, match=REMEDY):
        denman_beavers(matrix.double(), remedy=REMEDY)


def test_one_indefinite_matrix_of_a_batch_is_enough():
    matrix = torch.stack([torch.eye(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])]).double()
    with pytest.raises(NotPositiveDefiniteError):
        denman_beavers(matrix, remedy=REMEDY)


def test_too_few_iterations_raise():
    with pytest.raises(FactorisationError, match=f"did not converge in 2 iterations; {REMEDY}"):
        denman_beavers(positive_definite(6, 1e4)[0], remedy=REMEDY, iterations=2)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_named(bad):
    matrix = torch.eye(3).double()
    matrix[0, 1] = matrix[1, 0] = bad
    for function in (lambda: denman_beavers(matrix, remedy=REMEDY), lambda: nystrom_columns(matrix, 2)):
        with pytest.raises(NonFiniteStatisticsError, match="a metric of size 3"):
            function()


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
@pytest.mark.parametrize("columns", [1, 3, 7])
def test_pivots_give_the_nystrom_approximation_from_their_columns(columns, batch):
    """``C W^-1 C^T`` with the columns that were chosen, exact on them, and never above the matrix."""
    matrix, _, _ = positive_definite(7, 1e3, batch)
    factor, rest = nystrom_columns(matrix, columns)
    left = matrix - factor @ factor.mT
    assert relative(left.diagonal(dim1=-2, dim2=-1).clamp_min(0.0) + 1.0, rest + 1.0) < 1e-10
    assert float(torch.linalg.eigvalsh(left).min()) > -1e-10 * float(matrix.abs().max())
    for one, approximation in zip(matrix.reshape(-1, 7, 7), (factor @ factor.mT).reshape(-1, 7, 7), strict=True):
        chosen = (one - approximation).abs().amax(-1).argsort()[:columns]
        c = one[:, chosen]
        assert relative(c @ torch.linalg.solve(one[chosen][:, chosen], c.T), approximation) < 1e-9


def test_pivots_are_exact_at_the_rank_and_stop_there():
    rows = torch.randn((3, 8), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    matrix = rows.T @ rows
    for columns in (3, 6, 8):
        factor, rest = nystrom_columns(matrix, columns)
        assert relative(factor @ factor.T, matrix) < 1e-12
        assert float(rest.max()) < 1e-12 and not bool(factor[:, 3:].any())
    factor, rest = nystrom_columns(torch.zeros(4, 4), 2)
    assert not bool(factor.any()) and not bool(rest.any())
