from __future__ import annotations

import pytest
import torch

from vogn.errors import FactorisationError, NonFiniteStatisticsError
from vogn.linalg import eigh as module
from vogn.linalg.eigh import dense_from_basis, diagonal_from_basis, eigh, from_basis, to_basis


def psd(size: int, rank: int, batch: tuple[int, ...] = ()) -> torch.Tensor:
    root = torch.randn(*batch, size, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root @ root.mT


@pytest.mark.parametrize(("size", "batch"), [(4, ()), (3, (2, 2)), (1, ()), (1, (5,))])
def test_values_and_vectors_rebuild_the_matrix(size, batch):
    matrix = psd(size, 2, batch)
    values, vectors = eigh(matrix)
    torch.testing.assert_close((vectors * values.unsqueeze(-2)) @ vectors.mT, matrix)


def test_rounding_below_zero_is_clamped():
    assert (eigh(psd(6, 2))[0] >= 0).all()
    assert (eigh(torch.full((1, 1), -1e-20))[0] == 0).all()


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_matrices_are_named(size, value):
    with pytest.raises(NonFiniteStatisticsError, match="NaN or infinity"):
        eigh(torch.full((size, size), value))


@pytest.mark.parametrize("failures", [1, 2])
def test_failures_are_retried_in_double_and_with_jitter(monkeypatch, failures):
    matrix, calls = psd(3, 3).float(), []
    true_eigh = torch.linalg.eigh

    def flaky(m):
        calls.append(m.dtype)
        if len(calls) <= failures:
            raise torch.linalg.LinAlgError("did not converge")
        return true_eigh(m)

    monkeypatch.setattr(module.torch.linalg, "eigh", flaky)
    values, vectors = eigh(matrix)
    assert calls == [torch.float32, torch.float64, torch.float64][: failures + 1]
    assert values.dtype == vectors.dtype == torch.float32
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix, rtol=1e-5, atol=1e-5)


def test_a_hopeless_matrix_is_named(monkeypatch):
    def never(m):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(module.torch.linalg, "eigh", never)
    with pytest.raises(FactorisationError, match="of size 3 did not converge"):
        eigh(psd(3, 3))


def test_coordinates_are_those_of_the_kronecker_basis():
    qs, qa = eigh(psd(2, 2))[1], eigh(psd(3, 3))[1]
    v = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = torch.rand(2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    q = torch.kron(qs, qa)
    torch.testing.assert_close(to_basis(v, qs, qa).flatten(1), v.flatten(1) @ q)
    torch.testing.assert_close(from_basis(to_basis(v, qs, qa), qs, qa), v)
    dense = q @ values.flatten().diag() @ q.T
    torch.testing.assert_close(dense_from_basis(values, qs, qa), dense)
    torch.testing.assert_close(diagonal_from_basis(values, qs, qa).flatten(), dense.diagonal())


@pytest.mark.parametrize("exponent", [-100, -60, 60, 110])
def test_the_scale_of_the_matrix_does_not_change_the_digits_of_the_decomposition(exponent):
    matrix = psd(4, 4).float()
    values, vectors = eigh(matrix)
    scaled, same = eigh(matrix * 2.0**exponent)
    assert torch.equal(scaled, values * 2.0**exponent) and torch.equal(same, vectors)


def test_rounding_that_breaks_symmetry_is_averaged():
    matrix = psd(3, 3)
    other = matrix.clone()
    other[0, 1] += 2e-9
    values, _ = eigh(other)
    torch.testing.assert_close(values, torch.linalg.eigvalsh((other + other.T) / 2), rtol=1e-14, atol=1e-14)


def test_a_decomposition_that_is_silently_not_finite_is_retried(monkeypatch):
    matrix, calls, true_eigh = psd(3, 3).float(), [], torch.linalg.eigh

    def silent(m):
        calls.append(m.dtype)
        values, vectors = true_eigh(m)
        return (values * float("nan"), vectors) if len(calls) == 1 else (values, vectors)

    monkeypatch.setattr(module.torch.linalg, "eigh", silent)
    values, vectors = eigh(matrix)
    assert calls == [torch.float32, torch.float64]
    torch.testing.assert_close((vectors * values) @ vectors.T, matrix, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_zero_stays_zero(size):
    values, vectors = eigh(torch.zeros(2, size, size))
    assert torch.equal(values, torch.zeros(2, size)) and torch.equal(vectors.abs().sum(-1), torch.ones(2, size))
