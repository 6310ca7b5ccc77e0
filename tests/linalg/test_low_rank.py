from __future__ import annotations

import pytest
import torch

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.linalg import low_rank


def parts(size: int = 7, rank: int = 3, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    u = scale * torch.randn(size, rank, generator=source, dtype=torch.float64)
    return 0.1 + torch.rand(size, generator=source, dtype=torch.float64), u


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_operators_are_those_of_the_dense_matrix(rank):
    d, u = parts(rank=rank)
    dense = d.diag() + u @ u.T
    inverse = torch.linalg.inv(dense)
    v = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    root = low_rank.sample(d, u, torch.eye(7, dtype=torch.float64))
    torch.testing.assert_close(low_rank.apply(d, u, v), v @ dense)
    torch.testing.assert_close(low_rank.solve(d, u, v), v @ inverse)
    torch.testing.assert_close(root.T @ root, inverse)
    torch.testing.assert_close(low_rank.logdet(d, u), torch.logdet(dense))
    torch.testing.assert_close(low_rank.inverse_diagonal(d, u), inverse.diagonal())


def test_the_sampler_depends_on_the_product_of_the_columns_only():
    d, u = parts()
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64))[0]
    noise = torch.randn(2, 7, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    torch.testing.assert_close(low_rank.sample(d, u, noise), low_rank.sample(d, u @ rotation, noise))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 30.0, 300.0])
def test_solutions_in_the_span_of_the_columns_keep_their_digits(scale, dtype):
    """Woodbury's identity alone has a relative residual up to 1e-9 in double and 0.1 in single precision."""
    d, u = parts(size=200, rank=6, scale=scale)
    d, u = d.to(dtype).double(), u.to(dtype).double()
    v = (u @ torch.ones(6, dtype=torch.float64)).to(dtype).unsqueeze(0)
    x = low_rank.solve(d.to(dtype), u.to(dtype), v).double()
    dense = d.diag() + u @ u.T
    residual = torch.linalg.norm(x @ dense - v) / (torch.linalg.matrix_norm(dense, 2) * x.norm() + v.norm())
    assert residual < 100 * torch.finfo(dtype).eps


def test_inverse_diagonal_is_positive_under_cancellation_in_single_precision():
    d, u = (tensor.float() for tensor in parts(rank=6, scale=1e6))
    assert (low_rank.inverse_diagonal(d, u) >= 1 / (d + u.square().sum(1))).all()


@pytest.mark.parametrize("examples", [2, 20])
def test_compress_keeps_the_best_directions_and_the_diagonal(examples):
    _, u = parts()
    rows = torch.randn(examples, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    full = 0.9 * u @ u.T + 0.1 * rows.T @ rows
    values, vectors = torch.linalg.eigh(full)
    new, rest = low_rank.compress(u, rows, decay=0.9, weight=0.1, rank=3)
    best = (vectors[:, -3:] * values[-3:]) @ vectors[:, -3:].T
    torch.testing.assert_close(new @ new.T, best)
    torch.testing.assert_close(new.square().sum(1) + rest, full.diagonal())
    assert (rest >= 0).all()


@pytest.mark.parametrize(
    ("value", "error"), [(0.0, NotPositiveDefiniteError), (float("nan"), NonFiniteStatisticsError)]
)
def test_a_diagonal_that_is_not_positive_is_named(value, error):
    d, u = parts()
    d[3] = value
    for call in (low_rank.logdet, low_rank.inverse_diagonal):
        with pytest.raises(error, match="diagonal of a low-rank curvature"):
            call(d, u)
