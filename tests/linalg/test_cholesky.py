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


@pytest.mark.parametrize("exponent", [-120, -40, 40, 100])
def test_the_scale_of_the_matrix_does_not_change_the_digits_of_the_factor(exponent):
    matrix = spd().float()
    root = cholesky(matrix, remedy="") * 2.0 ** (exponent // 2)
    assert torch.equal(cholesky(matrix * 2.0**exponent, remedy=""), root)


def rounded_away(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Positive definite by construction: rank one plus a shift far below the rounding of the rank-one part."""
    v = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype) * 1e3
    return torch.outer(v, v) + 1e-12 * torch.eye(12, dtype=dtype)


def test_a_rescue_adds_rounding_errors_of_the_trace_and_only_on_request():
    matrix = rounded_away()
    assert float(torch.linalg.eigvalsh(matrix.double())[0]) < 0
    with pytest.raises(NotPositiveDefiniteError, match="of size 12"):
        cholesky(matrix, remedy="")
    root = cholesky(matrix, remedy="", rescue=True)
    assert root.dtype == torch.float32
    error = torch.linalg.matrix_norm((root @ root.T - matrix).double(), 2)
    assert float(error) <= 101 * torch.finfo(torch.float32).eps * float(matrix.trace())


def test_a_rescue_does_not_hide_an_indefinite_matrix():
    matrix = spd().float()
    matrix[0, 0] = -1e-3
    with pytest.raises(NotPositiveDefiniteError):
        cholesky(matrix, remedy="", rescue=True)
    with pytest.raises(NotPositiveDefiniteError):
        cholesky(torch.zeros(3, 3), remedy="", rescue=True)


def test_one_bad_matrix_of_a_batch_is_rescued_beside_good_ones():
    good = 1e-9 * torch.eye(12)
    roots = cholesky(torch.stack([good, rounded_away()]), remedy="", rescue=True)
    # the retry adds at most 100 eps trace = 1200 eps of an entry to the good one too
    torch.testing.assert_close(roots[0] @ roots[0].T, good, rtol=1300 * torch.finfo(torch.float32).eps, atol=1e-20)
    assert bool(roots[1].isfinite().all())
