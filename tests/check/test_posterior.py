"""Checked posteriors against closed forms, quadrature and Hamiltonian Monte Carlo."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import vogn
from vogn.likelihoods import Bernoulli, Gaussian


def regression(precision=1.0, noise=0.5):
    """A linear model at its optimum under the prior, its exact posterior, and both moments by hand."""
    source = torch.Generator().manual_seed(0)
    x = torch.randn(30, 3, generator=source, dtype=torch.float64)
    y = x @ torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64) + noise * torch.randn(
        30, 1, generator=source, dtype=torch.float64
    )
    a = torch.cat([x, torch.ones(30, 1, dtype=torch.float64)], 1)
    covariance = torch.linalg.inv(a.T @ a / noise**2 + precision * torch.eye(4, dtype=torch.float64))
    mean = covariance @ a.T @ y / noise**2
    model, likelihood = nn.Linear(3, 1).double(), Gaussian(noise=noise)
    with torch.no_grad():
        model.weight.copy_(mean[:3].T)
        model.bias.copy_(mean[3])
    posterior = vogn.laplace(model, likelihood, [(x, y)], structure="dense", prior_precision=precision)
    return model, posterior, likelihood, (x, y), (a, mean, covariance)


def test_the_exact_reference_is_the_closed_form():
    model, posterior, likelihood, data, (a, mean, covariance) = regression()
    found = vogn.check_posterior(model, posterior, likelihood, data)
    assert found.reference.name == "exact"
    torch.testing.assert_close(found.reference.mean, a @ mean, rtol=1e-9, atol=1e-9)
    variance = ((a @ covariance) * a).sum(1, keepdim=True)
    torch.testing.assert_close(found.reference.variance, variance, rtol=1e-8, atol=1e-12)


def test_an_exact_posterior_is_trusted():
    found = vogn.check_posterior(*regression()[:4], samples=4000)
    assert found.trusted
    assert found.variance_ratio.value == pytest.approx(1.0, abs=0.1)
    assert found.mean_error.value < 0.1
    for level, share in found.coverage.items():
        assert share.value == pytest.approx(level, abs=0.03)
    text = str(found)
    assert "exact Gaussian" in text and "Trust it" in text


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_a_posterior_of_another_width_is_found_out(factor):
    model, posterior, likelihood, data, _ = regression()
    wrong = posterior.tempered(factor)
    found = vogn.check_posterior(
        model, wrong, likelihood, data, prior=vogn.Prior(0.0, 1.0), ess=float(len(data[0])), samples=4000
    )
    assert found.variance_ratio.value == pytest.approx(factor, rel=0.15)
    assert not found.trusted


def test_another_ess_is_compared_with_the_tempered_posterior():
    """The precision of ``tempered(t)`` is that of prior and likelihood both to the power 1 / t."""
    model, posterior, likelihood, data, _ = regression()
    found = vogn.check_posterior(model, posterior.tempered(0.5), likelihood, data, samples=4000)
    assert found.temperature == pytest.approx(0.5)
    assert found.variance_ratio.value == pytest.approx(1.0, abs=0.1)
    assert "temperature 0.5" in str(found)


def test_a_wrong_mean_is_found_out():
    model, posterior, likelihood, data, _ = regression()
    moved = vogn.GaussianPosterior(
        posterior.blocks, {name: mean + 1.0 for name, mean in posterior.mean().items()}, likelihood=posterior.likelihood
    )
    found = vogn.check_posterior(model, moved, likelihood, data)
    assert found.mean_error.value > 2.0 and not found.trusted


def logistic():
    source = torch.Generator().manual_seed(1)
    x = torch.randn(25, 1, generator=source, dtype=torch.float64)
    y = torch.bernoulli(torch.sigmoid(1.5 * x + 0.3), generator=source)
    model = nn.Linear(1, 1).double()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=200, tolerance_grad=1e-12)

    def loss():
        optimizer.zero_grad()
        value = 25 * Bernoulli()(model(x), y) + 0.5 * sum(p.square().sum() for p in model.parameters())
        value.backward()
        return value

    optimizer.step(loss)
    posterior = vogn.laplace(model, Bernoulli(), [(x, y)], structure="dense", prior_precision=1.0)
    return model, posterior, Bernoulli(), (x, y)


def test_quadrature_agrees_with_a_plain_grid():
    model, posterior, likelihood, (x, y) = logistic()
    at = torch.linspace(-3, 3, 9, dtype=torch.float64).unsqueeze(-1)
    found = vogn.check_posterior(model, posterior, likelihood, (x, y), at=at)
    assert found.reference.name == "quadrature"
    w = torch.linspace(-6, 8, 400, dtype=torch.float64)
    b = torch.linspace(-5, 6, 400, dtype=torch.float64)
    grid = torch.cartesian_prod(w, b)
    logits = x @ grid[:, :1].T + grid[:, 1]
    log = (y * logits - nn.functional.softplus(logits)).sum(0) - 0.5 * grid.square().sum(1)
    p = (log - log.logsumexp(0)).exp()
    mean = (at @ grid[:, :1].T + grid[:, 1]).sigmoid() @ p
    torch.testing.assert_close(found.reference.mean.flatten(), mean, rtol=1e-4, atol=1e-5)
    assert found.std_correlation.value > 0.95


@pytest.mark.slow
def test_nuts_agrees_with_the_exact_posterior():
    model, posterior, likelihood, data, (a, mean, covariance) = regression()
    sampler = vogn.check.Sampler(warmup=200, draws=400)
    found = vogn.check_posterior(model, posterior, likelihood, data, reference="nuts", sampler=sampler)
    assert found.reference.name == "nuts" and found.r_hat < 1.1
    variance = ((a @ covariance) * a).sum(1, keepdim=True)
    assert float((found.reference.variance / variance).log().abs().max()) < 0.4
    assert float(((found.reference.mean - a @ mean) / variance.sqrt()).abs().max()) < 0.3


def test_what_cannot_be_checked_is_refused():
    model, posterior, likelihood, (x, y), _ = regression()
    with pytest.raises(ValueError, match="NaN"):
        vogn.check_posterior(model, posterior, likelihood, (x, y * math.nan))
    with pytest.raises(ValueError, match="samples=1 must be at least 2"):
        vogn.check_posterior(model, posterior, likelihood, (x, y), samples=1)
    with pytest.raises(ValueError, match="at least two"):
        vogn.check_posterior(model, posterior, likelihood, (x, y), at=x[:1])
    with pytest.raises(ValueError, match="prior"):
        vogn.check_posterior(model, vogn.Ensemble([model, model]), likelihood, (x, y))
    with pytest.raises(ValueError, match="no weight samples"):
        vogn.check_posterior(model, posterior, likelihood, (x, y), method="mean")
    wide = nn.Sequential(nn.Linear(3, 200), nn.Tanh(), nn.Linear(200, 1)).double()
    with pytest.raises(ValueError, match="more than NUTS is meant for"):
        vogn.check_posterior(wide, vogn.laplace(wide, likelihood, [(x, y)]), likelihood, (x, y))
