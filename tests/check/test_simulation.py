"""Simulation-based calibration passes exact posteriors and finds out wrong ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import vogn
from vogn.likelihoods import Gaussian

X = torch.randn(12, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def exact(factor):
    """The exact posterior of a linear regression, its covariance times ``factor``."""

    def fit(model, x, y):
        a = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)
        covariance = torch.linalg.inv(a.T @ a / 0.25 + torch.eye(3, dtype=x.dtype))
        mean = covariance @ a.T @ y / 0.25
        with torch.no_grad():
            model.weight.copy_(mean[:2].T)
            model.bias.copy_(mean[2])
        return vogn.laplace(model, Gaussian(noise=0.5), [(x, y)], structure="dense").tempered(factor)

    return fit


def calibrate(fit, **options):
    model = nn.Linear(2, 1).double()
    return vogn.simulation_based_calibration(
        model, Gaussian(noise=0.5), X, fit, simulations=150, draws=49, bins=10, **options
    )


def test_the_exact_posterior_passes():
    found = calibrate(exact(1.0))
    assert tuple(found.ranks.shape) == (150, 3)
    assert min(found.chi_square) > 1e-3 and min(found.ks) > 1e-3


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_half_and_twice_the_standard_deviation_are_found_out(factor):
    found = calibrate(exact(factor))
    assert max(found.chi_square) < 1e-3
    assert found.shape != "flat"


def test_outputs_can_be_ranked_and_drawn(tmp_path):
    found = calibrate(exact(1.0), at=X[:2])
    assert min(found.chi_square) > 1e-3
    found.plot(tmp_path / "ranks.png")
    assert (tmp_path / "ranks.png").stat().st_size > 1000


def test_bins_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="does not divide draws"):
        vogn.simulation_based_calibration(nn.Linear(2, 1).double(), Gaussian(), X, exact(1.0), draws=10, bins=5)
    with pytest.raises(ValueError, match="simulations=3 is out of range"):
        vogn.simulation_based_calibration(nn.Linear(2, 1).double(), Gaussian(), X, exact(1.0), simulations=3)
