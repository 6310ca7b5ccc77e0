from __future__ import annotations

import math

import pytest
import torch

from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.kernels import reference
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


@pytest.mark.parametrize("scale", [1.0, 1e5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operators_in_pieces_are_those_in_one_go(scale, dtype, monkeypatch):
    """With and without refinement; nothing that was given is changed."""
    d, u = (x.to(dtype) for x in parts(size=100, rank=3, scale=scale))
    v = torch.randn(4, 100, generator=torch.Generator().manual_seed(1), dtype=dtype)
    before = [x.clone() for x in (d, u, v)]
    found = low_rank.solve(d, u, v), low_rank.sample(d, u, v)
    monkeypatch.setattr(reference, "CACHED_ELEMENTS", 60)
    assert len(list(low_rank.tall.pieces(u))) == 7
    eps = torch.finfo(dtype).eps
    for whole, other in zip(found, (low_rank.solve(d, u, v), low_rank.sample(d, u, v)), strict=True):
        assert other.dtype == dtype
        torch.testing.assert_close(other, whole, rtol=100 * eps, atol=100 * eps * float(whole.abs().max()))
    assert all(torch.equal(x, y) for x, y in zip((d, u, v), before, strict=True))


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6, 3e6])
def test_single_precision_needs_no_refinement_as_far_as_it_does_without(size, monkeypatch):
    """Up to ``tr V^T V`` of 5e6, in the span of the columns, where Woodbury's identity cancels most."""
    d, u = parts(size=200, rank=6)
    u = (u * (size / float((u.square() / d.unsqueeze(1)).sum())) ** 0.5).float()
    d = d.float()
    v = (u @ torch.ones(6)).unsqueeze(0)
    monkeypatch.setattr(low_rank, "_refine", None)
    x = low_rank.solve(d, u, v)
    exact = torch.linalg.solve(d.double().diag() + u.double() @ u.double().T, v.double().T).T
    assert x.dtype == torch.float32
    assert float((x - exact).norm() / exact.norm()) < 2 * torch.finfo(torch.float32).eps
    with pytest.raises(TypeError):
        low_rank.solve(d.double(), u.double(), v.double())  # double precision is always refined


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


@pytest.mark.parametrize("rank", [1, 3, 7])
def test_extreme_columns_take_the_other_way_and_mean_the_same_matrix(rank, monkeypatch):
    d, u = parts(rank=rank)
    v = torch.randn(4, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    operators = (low_rank.solve, low_rank.sample)
    squared = [*(f(d, u, v) for f in operators), low_rank.logdet(d, u), low_rank.inverse_diagonal(d, u)]
    monkeypatch.setattr(low_rank, "SQUARED_LIMIT", 0.0)
    other = [*(f(d, u, v) for f in operators), low_rank.logdet(d, u), low_rank.inverse_diagonal(d, u)]
    torch.testing.assert_close(squared, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1e2, 1e4, 1e6, 1e9, 1e12])
def test_a_solve_is_exact_in_the_span_of_the_columns_at_any_size(scale):
    """Where gradients lie; the residual is compared because the matrix is known to one rounding error only."""
    d, u = parts(scale=scale)
    for v in (u.T[:1], torch.randn(1, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)):
        x = low_rank.solve(d, u, v)
        residual = (low_rank.apply(d, u, x) - v).norm()
        assert float(residual) < 1e-12 * float((u @ u.T).norm() * x.norm() + v.norm())


@pytest.mark.parametrize("scale", [1e4, 1e8, 1e12])
def test_the_sampler_removes_the_directions_of_the_evidence_and_leaves_the_others_alone(scale):
    """|U|^2 / d up to 1e30, with dependent columns."""
    _, u = parts(size=6, rank=1, scale=scale)
    columns = torch.cat([u, u, 2 * u, 4 * u], 1)
    d = torch.full((6,), 1e-6, dtype=torch.float64)
    inside, v = (u / u.norm()).T, torch.randn(1, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outside = v - (v @ inside.T) * inside
    outside -= (outside @ inside.T) * inside
    size = float(22 * u.square().sum())
    # absolute: 1e-9 of the largest result, and what double precision leaves of 1 / d = 1e6 along the evidence
    torch.testing.assert_close(low_rank.sample(d, columns, outside), outside / 1e-3, rtol=1e-9, atol=1e-6)
    torch.testing.assert_close(low_rank.solve(d, columns, outside), outside / 1e-6, rtol=1e-9, atol=1e-3)
    assert float(low_rank.sample(d, columns, inside) @ inside.T) == pytest.approx(size**-0.5, rel=1e-6, abs=0.0)
    assert float(low_rank.solve(d, columns, inside) @ inside.T) == pytest.approx(1 / size, rel=1e-6, abs=1e-15 / 1e-6)
    assert float(low_rank.logdet(d, columns)) == pytest.approx(5 * math.log(1e-6) + math.log(size), rel=1e-9)
    variance = (1.0 - inside.square()).flatten() / 1e-6
    torch.testing.assert_close(low_rank.inverse_diagonal(d, columns), variance, rtol=1e-6, atol=0)


def test_columns_that_are_not_finite_are_named():
    d, u = parts()
    for value, what in ((float("nan"), "NaN"), (float("inf"), "infinity")):
        bad = u.clone()
        bad[0, 0] = value
        with pytest.raises(NonFiniteStatisticsError, match=f"columns of a low-rank curvature hold {what}"):
            low_rank.solve(d, bad, torch.ones(1, 7, dtype=torch.float64))
