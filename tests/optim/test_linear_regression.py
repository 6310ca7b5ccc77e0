"""Bayesian linear regression with known noise: the engine against the exact posterior."""

import pytest
import torch
from torch import nn

from vogn import VOGN, VON
from vogn.likelihoods import Gaussian

N, NOISE, DELTA = 14, 0.5, 2.0


class Problem:
    """``y = X w + noise`` with features ``X`` (a column of ones for the bias) and ``K`` independent outputs."""

    def __init__(self, tools, bias, outputs, temperature=1.0):
        self.x, self.y = tools.normal(N, 3), tools.normal(N, outputs, seed=1)
        self.model = tools.fill(nn.Linear(3, outputs, bias=bias).double(), seed=5)
        features = torch.cat([self.x, torch.ones(N, 1).double()], 1) if bias else self.x
        one = features.T @ features / NOISE**2
        self.evidence = torch.kron(torch.eye(outputs).double(), one)
        eye = torch.eye(len(self.evidence)).double()
        self.precision = self.evidence / temperature + DELTA * eye
        projected = (self.y.T @ features / NOISE**2).flatten()
        self.mean = torch.linalg.solve(self.evidence + temperature * DELTA * eye, projected)
        self.ess, self.weight_decay = N / temperature, temperature * DELTA / N
        self.outputs, self.bias = outputs, bias

    def step(self, opt, contexts=1):
        opt.zero_grad()
        for _ in range(contexts):
            with opt.sampled_params():
                Gaussian(noise=NOISE)(self.model(self.x), self.y).backward()
        opt.step()

    def von(self, **options):
        defaults = {"damping": 0.0, "momentum": 0.0, "ess": self.ess, "weight_decay": self.weight_decay}
        return VON(self.model, **(defaults | options))

    def flat(self, named):
        """Weights (and bias as a last column) row by row: the order of ``kron(I, X^T X)``."""
        weight = named["weight"]
        columns = torch.cat([weight, named["bias"].unsqueeze(1)], 1) if self.bias else weight
        return columns.flatten()


@pytest.fixture(params=[(True, 1), (False, 1), (True, 2)], ids=["bias", "no bias", "two outputs"])
def problem(request, tools):
    return Problem(tools, *request.param)


@pytest.mark.parametrize("mode", ["at the mean", "antithetic pair"])
def test_one_dense_step_lands_on_the_exact_posterior_from_any_start(problem, mode):
    pair = mode == "antithetic pair"
    opt = problem.von(
        lr=1.0,
        curvature_decay=0.0,
        structure="dense",
        variational=pair,
        mc_samples=2 if pair else 1,
        antithetic=pair,
        initial_curvature=3.0,
        seed=4,
    )
    problem.step(opt, contexts=2 if pair else 1)
    posterior = opt.posterior()
    torch.testing.assert_close(problem.flat(posterior.mean()), problem.mean, rtol=1e-11, atol=1e-12)
    (precision,) = posterior.precision_matrices().values()
    torch.testing.assert_close(precision, problem.precision, rtol=1e-12, atol=1e-12)


def test_the_pair_really_is_displaced(problem):
    """Guards the test above: without noise it would prove less."""
    opt = problem.von(lr=1.0, structure="dense", mc_samples=2, antithetic=True, initial_curvature=3.0)
    mean = problem.flat(dict(problem.model.named_parameters())).detach().clone()
    seen = []
    for _ in range(2):
        with opt.sampled_params():
            seen.append(problem.flat(dict(problem.model.named_parameters())).detach() - mean)
    assert float(seen[0].abs().min()) > 1e-4
    torch.testing.assert_close(seen[0], -seen[1])


@pytest.mark.parametrize("variational", [False, True])
def test_the_diagonal_converges_to_the_mean_field_optimum(problem, variational):
    opt = problem.von(
        lr=0.5, curvature_decay=0.5, variational=variational, mc_samples=2, antithetic=True, initial_curvature=1.0
    )
    for _ in range(120):
        problem.step(opt, contexts=2)
    posterior = opt.posterior()
    torch.testing.assert_close(problem.flat(posterior.mean()), problem.mean, rtol=1e-8, atol=1e-9)
    variances = problem.flat(posterior.variance())
    torch.testing.assert_close(variances, problem.precision.diagonal().reciprocal(), rtol=1e-12, atol=0)
    marginal = torch.linalg.inv(problem.precision).diagonal()
    assert bool((variances <= marginal).all())


def test_the_precision_approaches_its_limit_geometrically(problem):
    opt = problem.von(lr=0.1, curvature_decay=0.8, structure="dense", initial_curvature=3.0, variational=True)
    start = (problem.ess * 3.0 + DELTA) * torch.eye(len(problem.precision)).double()
    for t in range(1, 8):
        problem.step(opt)
        (precision,) = opt.posterior().precision_matrices().values()
        expected = problem.precision + 0.8**t * (start - problem.precision)
        torch.testing.assert_close(precision, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 3.0])
def test_tempering_scales_the_evidence_and_not_the_prior(tools, temperature):
    problem = Problem(tools, True, 1, temperature)
    opt = problem.von(lr=1.0, curvature_decay=0.0, structure="dense", variational=False)
    problem.step(opt)
    posterior = opt.posterior()
    torch.testing.assert_close(problem.flat(posterior.mean()), problem.mean, rtol=1e-10, atol=1e-12)
    (precision,) = posterior.precision_matrices().values()
    torch.testing.assert_close(precision, problem.precision, rtol=1e-12, atol=1e-12)


def test_augmentation_and_temperature_leave_the_prior_precision_alone(tools):
    """1 / variance = rho N F / tau + delta, with delta independent of rho."""
    problem, rho, tau = Problem(tools, True, 1), 5.0, 0.1
    ess = rho * N / tau
    opt = VOGN(problem.model, lr=0.0, ess=ess, weight_decay=DELTA / ess, damping=0.7, fisher="ggn", variational=False)
    problem.step(opt)
    features = torch.cat([problem.x, torch.ones(N, 1).double()], 1)
    expected = rho * N / tau * features.square().mean(0) / NOISE**2 + DELTA
    torch.testing.assert_close(problem.flat(opt.posterior().variance()).reciprocal(), expected, rtol=1e-12, atol=0)


def test_the_empirical_fisher_is_not_the_posterior(problem):
    """Its fixed point is mean_n x_n^2 r_n^2 / noise^4: documented, and why VON uses the exact GGN."""
    opt = VOGN(
        problem.model, lr=0.0, ess=N, weight_decay=DELTA / N, fisher="empirical", variational=False, curvature_decay=0.0
    )
    problem.step(opt)
    ones = torch.ones(N, 1).double()
    features = torch.cat([problem.x, ones], 1) if problem.bias else problem.x
    residual = (problem.model(problem.x) - problem.y).detach() / NOISE**2
    squares = torch.einsum("nk,ni->ki", residual.square(), features.square()).flatten()
    precision = problem.flat(opt.posterior().variance()).reciprocal()
    torch.testing.assert_close(precision, squares + DELTA, rtol=1e-12, atol=0)
    assert not torch.allclose(precision, problem.precision.diagonal(), rtol=0.05)
