"""Powers of a number plus low rank against the singular value decomposition of the columns."""

import pytest
import torch

from tiny_models import normal
from vogn.errors import NotPositiveDefiniteError
from vogn.linalg.low_rank_powers import power_solve, pseudo_solve

X = normal(3, 11, seed=1)


def columns(kind):
    u = normal(11, 4)
    if kind == "dependent":
        u[:, 2] = u[:, 0] - u[:, 1]
    if kind == "empty":
        u[:, 1] = 0.0
    if kind == "graded":
        u = u * torch.tensor([1e3, 1.0, 1e-3, 1e-6], dtype=torch.float64)
    return u


def spectrum(u, d):
    """All eigenvalues and eigenvectors of ``d I + U U^T``."""
    left, t, _ = torch.linalg.svd(u)
    t = torch.where(t > 1e-13 * t[0], t, 0.0)
    return torch.cat([t.square(), t.new_zeros(len(u) - len(t))]) + d, left


@pytest.mark.parametrize("kind", ["full", "dependent", "empty", "graded"])
@pytest.mark.parametrize("d", [0.0, 0.3])
@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0, 2.0])
def test_power_solve_is_the_function_of_the_spectrum(kind, d, exponent):
    u, shift = columns(kind), 1e-3
    values, vectors = spectrum(u, d)
    expected = ((X @ vectors) / (values**exponent + shift)) @ vectors.T
    found = power_solve(d, u, X, u.T @ u, shift=shift, exponent=exponent)
    tolerance = 1e-8 if (kind, exponent) == ("graded", 2.0) else 1e-10  # |C|^2 / shift = 1e15 times the rounding
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("d", [0.0, 0.3, 30.0])
@pytest.mark.parametrize("exponent", [0.5, 1.0])
def test_pseudo_solve_inverts_above_the_cut(d, exponent):
    u, cut = columns("dependent"), 5.0
    values, vectors = spectrum(u, d)
    assert float((values / cut).log().abs().min()) > 1e-3 and bool((values > cut).any())
    inverse = torch.where(values >= cut, values.clamp_min(1e-9) ** -exponent, 0.0)
    found = pseudo_solve(d, u, X, u.T @ u, cut=cut, exponent=exponent)
    torch.testing.assert_close(found, ((X @ vectors) * inverse) @ vectors.T, rtol=1e-10, atol=1e-11)


def test_no_shift_and_no_start_is_refused_with_the_remedy():
    u = columns("full")
    with pytest.raises(NotPositiveDefiniteError, match="set weight_decay"):
        power_solve(0.0, u, X, u.T @ u, shift=0.0, exponent=0.5)
