"""Log marginal likelihood: exact on linear models, with exact gradients; the best prior precision."""

import math

import pytest
import torch
from torch import nn

import vogn
from tiny_models import batch, fill, normal
from vogn.errors import UnsupportedObservationError
from vogn.likelihoods import Categorical, Gaussian

N, D = 20, 3


def linear(noise=0.7, delta=1.3):
    """A linear model at its optimum, its data, and the dense Laplace posterior."""
    x, w = normal(N, D, seed=1), normal(D, 1, seed=2)
    y = x @ w + 0.3 * normal(N, 1, seed=3)
    model = nn.Linear(D, 1, bias=False).double()
    with torch.no_grad():
        precision = x.T @ x / noise**2 + delta * torch.eye(D).double()
        model.weight.copy_(torch.linalg.solve(precision, x.T @ y / noise**2).T)
    posterior = vogn.laplace(model, Gaussian(noise=noise), [(x, y)], structure="dense", prior_precision=delta)
    return model, x, y, posterior


def exact(x, y, noise, delta):
    covariance = noise**2 * torch.eye(N).double() + x @ x.T / delta
    return torch.distributions.MultivariateNormal(torch.zeros(N).double(), covariance).log_prob(y.squeeze(1))


@pytest.mark.parametrize("noise", [0.3, 0.7])
@pytest.mark.parametrize("delta", [0.1, 1.3])
def test_it_is_exact_for_a_linear_model(noise, delta):
    model, x, y, posterior = linear(noise, delta)
    log_likelihood = -N * Gaussian(noise=noise)(model(x), y)
    torch.testing.assert_close(vogn.log_evidence(posterior, log_likelihood), exact(x, y, noise, delta))


def test_its_gradients_are_those_of_the_exact_evidence():
    """At the optimum the mean's dependence on both drops out."""
    noise, delta = 0.7, torch.tensor(1.3, dtype=torch.float64, requires_grad=True)
    model, x, y, posterior = linear(noise, float(delta))
    s = torch.tensor(noise, dtype=torch.float64, requires_grad=True)
    residual = (y - model(x)).detach().square().sum()
    log_likelihood = -0.5 * residual / s**2 - N * (s.log() + 0.5 * math.log(2 * math.pi))
    ours = vogn.log_evidence(posterior, log_likelihood, prior_precision=delta, data_scale=(noise / s) ** 2)
    reference = exact(x, y, s, delta)
    torch.testing.assert_close(ours, reference)
    found, expected = (torch.autograd.grad(value, (delta, s)) for value in (ours, reference))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("structure", ["dense", "diagonal", "kronecker", "eigen_kronecker", "diagonal_low_rank"])
def test_gradients_are_those_of_differences(structure):
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    posterior = vogn.laplace(model, Categorical(), [batch(8, 0, torch.float64)], structure=structure)
    delta = torch.tensor([0.5, 2.0], dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(
        lambda d, s: vogn.log_evidence(posterior, -3.0, prior_precision=d, data_scale=s), (delta, scale)
    )
    dense = -3.0 - sum(
        0.5 * torch.logdet(0.8 * (matrix - torch.eye(len(matrix)).double()) + d * torch.eye(len(matrix)).double())
        for matrix, d in zip(posterior.precision_matrices().values(), (0.5, 2.0), strict=True)
    )
    for block, d in zip(posterior.blocks, (0.5, 2.0), strict=True):
        square = block.layout.pack(posterior.mean()).square().sum()
        dense = dense + 0.5 * (block.numel * math.log(d) - d * square)
    found = vogn.log_evidence(posterior, -3.0, prior_precision=delta, data_scale=scale).detach()
    torch.testing.assert_close(found, dense, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("per", ["block", "all"])
def test_the_tuned_precision_is_a_maximum(per):
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    posterior = vogn.laplace(model, Categorical(), [batch(40, 0, torch.float64)])
    tuned = vogn.tune_prior_precision(posterior, per)
    best = torch.tensor([block.shift * block.ess for block in tuned.blocks], dtype=torch.float64)
    assert per == "block" or float(best[0]) == pytest.approx(float(best[1]), rel=1e-12)
    top = vogn.log_evidence(tuned, -3.0)
    assert top > vogn.log_evidence(posterior, -3.0)
    for factor in (0.9, 1.1):
        for chosen in ([0], [1]) if per == "block" else ([0, 1],):
            changed = best.clone()
            changed[chosen] *= factor
            assert vogn.log_evidence(posterior, -3.0, prior_precision=changed) < top
    delta = best.requires_grad_()
    (slope,) = torch.autograd.grad(vogn.log_evidence(posterior, -3.0, prior_precision=delta), delta)
    slope = slope if per == "block" else slope.sum()
    assert bool((slope * best.detach().max()).abs().max() < 1e-6)


def test_precisions_stay_within_their_bounds():
    model = nn.Linear(3, 2).double()
    with torch.no_grad():
        model.weight.zero_(), model.bias.zero_()
    x = normal(5, 3)
    posterior = vogn.laplace(model, Gaussian(noise=1.0), [(x, normal(5, 2))])
    (block,) = vogn.tune_prior_precision(posterior).blocks  # no weights: the larger the better
    assert block.shift * block.ess == pytest.approx(1e8)


def test_other_priors_by_pattern():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    posterior = vogn.laplace(model, Categorical(), [batch(8, 0, torch.float64)], prior_precision=2.0)
    changed = vogn.with_prior_precision(posterior, {"2.*": 5.0})
    first, last = (block.precision_matrix() for block in changed.blocks)
    torch.testing.assert_close(first, posterior.blocks[0].precision_matrix())
    torch.testing.assert_close(last, posterior.blocks[1].precision_matrix() + 3.0 * torch.eye(15).double())
    everywhere = vogn.with_prior_precision(posterior, 5.0)
    torch.testing.assert_close(everywhere.blocks[1].precision_matrix(), last)
    assert all(torch.equal(a, b) for a, b in zip(changed.mean().values(), posterior.mean().values(), strict=True))


def test_what_cannot_be_is_named():
    model = fill(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    x, y = batch(8, 0, torch.float64)
    posterior = vogn.laplace(model, Categorical(), [(x, y)])
    with pytest.raises(ValueError, match="has shape .3,.; give a scalar, or one for each of 2 blocks"):
        vogn.log_evidence(posterior, 0.0, prior_precision=torch.ones(3))
    with pytest.raises(ValueError, match="must be positive"):
        vogn.log_evidence(posterior, 0.0, prior_precision=-1.0)
    with pytest.raises(ValueError, match="no sampled block matches 'head'"):
        vogn.with_prior_precision(posterior, {"head": 1.0})
    with pytest.raises(ValueError, match="positive finite number, got 0"):
        vogn.with_prior_precision(posterior, 0.0)
    with pytest.raises(ValueError, match="per='layer': choose"):
        vogn.tune_prior_precision(posterior, "layer")
    opt = vogn.KFAC(model, ess=8.0)
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.step()
    with pytest.raises(UnsupportedObservationError, match="does not add its shift to the curvature.*factored=False"):
        vogn.log_evidence(opt.posterior(), 0.0)
