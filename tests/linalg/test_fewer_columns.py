"""Representatives, interpolations, draws and sketches of the columns of a matrix."""

from __future__ import annotations

import pytest
import torch

from tiny_models import normal
from vogn.errors import NotPositiveDefiniteError
from vogn.linalg import fewer_columns

U = normal(20, 8)
K = U.T @ U


@pytest.mark.parametrize("rank", [1, 3, 8, 50])
def test_pivoted_cholesky_is_the_projection_on_its_columns(rank):
    """``L^T L = K_:S K_SS^-1 K_S:`` with ``L_S`` upper triangular."""
    s, factor = fewer_columns.pivoted_cholesky(K, rank)
    assert len(s) == min(rank, 8) == len(set(s.tolist()))
    torch.testing.assert_close(factor.T @ factor, K[:, s] @ torch.linalg.solve(K[s][:, s], K[s]))
    assert torch.equal(factor[:, s].triu(), factor[:, s])


def test_pivots_are_the_columns_furthest_from_the_span_of_those_before():
    s, _ = fewer_columns.pivoted_cholesky(K, 8)
    left = U.clone()
    for pivot in s.tolist():
        assert int(left.square().sum(0).argmax()) == pivot
        direction = left[:, pivot] / left[:, pivot].norm()
        left = left - torch.outer(direction, direction @ left)


def test_dependent_columns_are_never_chosen():
    u = torch.cat([U[:, :3], 2.0 * U[:, :3], U[:, :1] - U[:, 1:2], torch.zeros(20, 2).double()], 1)
    assert len(fewer_columns.pivoted_cholesky(u.T @ u, 9)[0]) == 3
    assert len(fewer_columns.pivoted_cholesky(torch.zeros(4, 4).double(), 4)[0]) == 0
    assert len(fewer_columns.pivoted_cholesky(torch.zeros(0, 0).double(), 4)[0]) == 0


@pytest.mark.parametrize("rank", [1, 3, 7, 8])
def test_representatives_and_what_they_miss_are_all_of_the_matrix(rank):
    """``P K_SS P^T + Res = K`` with ``Q^T P`` and ``Res = Q diag(r^2) Q^T``: compared through invariants of ``Q``."""
    s, p, r = fewer_columns.representatives(K, rank)
    exact = torch.linalg.solve(K[s][:, s], K[s]).T
    rest = K - exact @ K[s][:, s] @ exact.T
    for power in range(3):
        weights = r.square() ** power if power else torch.ones_like(r)
        other = torch.linalg.matrix_power(rest, power)
        torch.testing.assert_close((p.T * weights) @ p, exact.T @ other @ exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(r.square().sum(), rest.trace(), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_an_interpolation_reproduces_its_own_columns_and_leaves_the_smallest_rest(rank):
    s, p, rest = fewer_columns.interpolation(K, rank)
    torch.testing.assert_close(p[s], torch.eye(rank).double())
    torch.testing.assert_close(K[:, s] @ p.T + rest, K)
    torch.testing.assert_close(p.T, torch.linalg.lstsq(K[:, s], K).solution, rtol=1e-8, atol=1e-8)


def test_merged_columns_have_the_same_outer_product():
    p = normal(11, 8, seed=1)
    v = fewer_columns.merge_columns(U, p)
    assert v.shape == U.shape
    torch.testing.assert_close(v @ v.T, U @ p.T @ p @ U.T)


@pytest.mark.parametrize("d", [torch.full((20,), 0.3).double(), 0.1 + torch.linspace(0, 1, 20).double()])
def test_sketched_operators_are_those_of_the_sketched_matrix(d):
    omega, v = torch.tensor([3, 0, 19, 7, 11]), normal(4, 20, seed=2)
    pi = torch.zeros(20).double().index_fill_(0, omega, 4.0).diag()
    dense = d.diag() + U @ U.T @ pi
    torch.testing.assert_close(fewer_columns.sketched_apply(d, U, omega, v), v @ dense.T)
    torch.testing.assert_close(fewer_columns.sketched_solve(d, U, omega, v), torch.linalg.solve(dense, v.T).T)
    with pytest.raises(NotPositiveDefiniteError, match="reaches 0"):
        fewer_columns.sketched_solve(0.0 * d, U, omega, v)


def test_all_coordinates_in_any_order_are_no_sketch():
    d, v = torch.full((20,), 0.3).double(), normal(4, 20, seed=2)
    omega = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    exact = torch.linalg.solve(d.diag() + U @ U.T, v.T).T
    torch.testing.assert_close(fewer_columns.sketched_solve(d, U, omega, v), exact)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_enough_columns_miss_nothing_at_all(size):
    """A residual of one rounding would count as one that is large, where there is no shift beside it."""
    source = torch.Generator().manual_seed(0)
    for _ in range(300):
        u = torch.randn(size, 8, generator=source, dtype=torch.float64)
        _, _, missed = fewer_columns.representatives(u @ u.T, size)
        assert not missed.any()
