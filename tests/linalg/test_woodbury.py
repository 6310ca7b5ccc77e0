"""``shift I + U U^T`` in sample space, in single and double precision, against dense matrices."""

import pytest
import torch

from vogn.errors import NotPositiveDefiniteError
from vogn.linalg import low_rank, woodbury


def columns(size=7, rank=3, scale=1.0, dtype=torch.float64):
    source = torch.Generator().manual_seed(0)
    return (scale * torch.randn(size, rank, generator=source, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("rank", [0, 3, 7, 9])
@pytest.mark.parametrize("shift", [1e-3, 1.0])
def test_operators_are_those_of_the_dense_matrix(rank, shift):
    u, eye = columns(rank=rank), torch.eye(7, dtype=torch.float64)
    dense = u @ u.T + shift * eye
    inverse = torch.linalg.inv(dense)
    exact = {"rtol": 1e-10, "atol": 1e-10 / shift}
    torch.testing.assert_close(woodbury.solve(shift, u, eye), inverse, **exact)
    root = woodbury.sample(shift, u, eye)
    torch.testing.assert_close(root.T @ root, inverse, **exact)
    torch.testing.assert_close(woodbury.logdet(shift, u), torch.logdet(dense), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e3, 1e6])
def test_single_precision_keeps_its_digits_through_a_refinement(scale):
    u, shift = columns(size=200, rank=20, scale=scale / 60, dtype=torch.float32), 1e-2
    v = u[:, :1].T + columns(size=1, rank=200, dtype=torch.float32)
    for vector in (v, u[:, :1].T):
        x = woodbury.solve(shift, u, vector).double()
        dense = u.double() @ u.double().T + shift * torch.eye(200, dtype=torch.float64)
        size = torch.linalg.matrix_norm(dense, 2) * x.norm() + vector.norm()
        assert float((x @ dense - vector.double()).norm() / size) < 1e-6


@pytest.mark.parametrize("operator", [woodbury.solve, woodbury.sample])
def test_extreme_columns_go_the_way_of_double_precision(operator):
    u = columns(scale=1e9)
    assert float(u.square().sum()) > woodbury.limit(u.dtype) ** 2 * 1e-3
    v = columns(size=4, rank=7)
    expected = getattr(low_rank, operator.__name__)(torch.full((7,), 1e-3, dtype=torch.float64), u, v)
    assert torch.equal(operator(1e-3, u, v), expected)


@pytest.mark.parametrize("shift", [0.0, -1.0])
def test_a_shift_that_is_not_positive_is_named(shift):
    for call in (lambda u: woodbury.solve(shift, u, u.T), lambda u: woodbury.logdet(shift, u)):
        with pytest.raises(NotPositiveDefiniteError, match="no inverse with a shift of .*set weight_decay"):
            call(columns())


@pytest.mark.parametrize("scale", [1.0, 1e9])
def test_a_kept_gram_matrix_changes_nothing_and_stays_as_it_is(scale):
    """Beyond SQUARED_LIMIT it is not used."""
    u, v = columns(size=9, scale=scale), columns(size=9, rank=2).T
    gram = u.T @ u
    before, d = gram.clone(), torch.full((9,), 0.3, dtype=torch.float64)
    for function, expected in ((woodbury.solve, low_rank.solve), (woodbury.sample, low_rank.sample)):
        torch.testing.assert_close(function(0.3, u, v, gram), expected(d, u, v), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(woodbury.logdet(0.3, u, gram), low_rank.logdet(d, u), rtol=1e-10, atol=1e-12)
    assert torch.equal(gram, before)
