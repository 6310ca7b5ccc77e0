"""M-FAC's recursions in the paper's own scale: rows ``g_i``, denominators ``m + g_i^T v_i``."""

import pytest
import torch

from tiny_models import normal
from vogn.linalg import rank_one_updates

LAM, M = 1e-3, 6
G = normal(M, 23)
U = G.T / M**0.5
DENSE = LAM * torch.eye(23, dtype=torch.float64) + G.T @ G / M
X = normal(4, 23, seed=1)


def test_the_static_form_is_the_papers_recursion_and_the_dense_inverse():
    """v_1 = g_1 / lam, q_i = m + g_i^T v_i, v_i = g_i / lam - sum_{j<i} v_j (v_j^T g_i) / q_j."""
    v, q = rank_one_updates.static_factors(U, LAM)
    theirs_v, theirs_q = [], []
    for g in G:
        w = g / LAM
        for vj, qj in zip(theirs_v, theirs_q, strict=True):
            w = w - vj * (vj @ g) / qj
        theirs_v.append(w)
        theirs_q.append(M + g @ w)
    torch.testing.assert_close(v * M**0.5, torch.stack(theirs_v), rtol=1e-10, atol=1e-8)
    torch.testing.assert_close(q * M, torch.stack(theirs_q), rtol=1e-12, atol=0)
    solved = rank_one_updates.static_solve(v, q, LAM, X)
    torch.testing.assert_close(solved, torch.linalg.solve(DENSE, X.T).T, rtol=1e-10, atol=1e-8)
    diagonal = rank_one_updates.static_inverse_diagonal(v, q, LAM)
    torch.testing.assert_close(diagonal, torch.linalg.inv(DENSE).diagonal(), rtol=1e-11, atol=0)


def test_the_dynamic_form_is_the_static_one():
    v, q = rank_one_updates.static_factors(U, LAM)
    factors = rank_one_updates.dynamic_factors(U.T @ U, LAM)
    d, theirs_q, b = factors
    torch.testing.assert_close(theirs_q, q, rtol=1e-12, atol=0)
    torch.testing.assert_close(b @ U.T, v, rtol=1e-10, atol=1e-8)
    static = rank_one_updates.static_solve(v, q, LAM, X)
    torch.testing.assert_close(rank_one_updates.dynamic_solve(U, factors, LAM, X), static, rtol=1e-10, atol=1e-8)
    for i in range(M):
        before = LAM * torch.eye(23, dtype=torch.float64) + U[:, :i] @ U[:, :i].T
        products = U.T @ torch.linalg.solve(before, U[:, i])
        torch.testing.assert_close(d[i, i:], products[i:], rtol=1e-9, atol=1e-9)


def test_the_dynamic_coefficients_are_the_upper_factor_of_an_lu_decomposition_without_pivots():
    """``D = triu(factor - I)``; in the paper's scale the matrix is ``G G^T / lam + m I``."""
    d, _, _ = rank_one_updates.dynamic_factors(U.T @ U, LAM)
    upper = G @ G.T / LAM + M * torch.eye(M, dtype=torch.float64)
    for i in range(M):
        for k in range(i + 1, M):
            upper[k, i:] -= upper[i, i:] * (upper[k, i] / upper[i, i])
    expected = upper.triu() - M * torch.eye(M, dtype=torch.float64)
    torch.testing.assert_close(M * d, expected, rtol=1e-10, atol=1e-8)


@pytest.mark.parametrize("column", [0, 3, 5])
def test_empty_columns_change_nothing(column):
    """A window that is not full yet."""
    u = U.clone()
    u[:, column] = 0.0
    dense = LAM * torch.eye(23, dtype=torch.float64) + u @ u.T
    expected = torch.linalg.solve(dense, X.T).T
    static = rank_one_updates.static_solve(*rank_one_updates.static_factors(u, LAM), LAM, X)
    dynamic = rank_one_updates.dynamic_solve(u, rank_one_updates.dynamic_factors(u.T @ u, LAM), LAM, X)
    for found in (static, dynamic):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-8)
