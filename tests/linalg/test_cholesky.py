from __future__ import annotations

import pytest
import torch

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.linalg.cholesky import (
    cholesky,
    cholesky_inverse_diagonal,
    cholesky_logdet,
    cholesky_sample,
    cholesky_solve,
)


def spd(size: int = 4) -> torch.Tensor:
    root = torch.randn(size, size + 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root @ root.T


def test_the_factor_gives_the_operators_of_the_matrix():
    matrix = spd()
    root, inverse = cholesky(matrix, remedy=""), torch.linalg.inv(matrix)
    v = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(root @ root.T, matrix)
    torch.testing.assert_close(cholesky_solve(root, v), v @ inverse)
    torch.testing.assert_close(cholesky_logdet(root), torch.logdet(matrix))
    torch.testing.assert_close(cholesky_inverse_diagonal(root), inverse.diagonal())
    sample = cholesky_sample(root, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(sample.T @ sample, inverse)


def test_a_failure_in_single_precision_is_retried_in_double(monkeypatch):
    matrix, true_cholesky = spd().float(), torch.linalg.cholesky_ex

    def fails_in_single(m):
        factor, info = true_cholesky(m)
        return factor, info + int(m.dtype == torch.float32)

    monkeypatch.setattr(torch.linalg, "cholesky_ex", fails_in_single)
    root = cholesky(matrix, remedy="")
    assert root.dtype == torch.float32
    torch.testing.assert_close(root @ root.T, matrix)


def test_the_message_ends_with_the_remedy():
    with pytest.raises(NotPositiveDefiniteError, match="of size 4, is not positive definite; buy a bigger shift"):
        cholesky(-spd(), remedy="buy a bigger shift")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_matrices_are_named(value):
    matrix = spd()
    matrix[1, 1] = value
    with pytest.raises(NonFiniteStatisticsError, match="NaN or infinity"):
        cholesky(matrix, remedy="")
