"""A network under gpytorch's evidence lower bound: its curvature is that of the bound's terms, one per example."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultivariateNormal
from torch import nn
from torch.testing import assert_close

import vogn


class SparseProcess(gpytorch.models.ApproximateGP):
    def __init__(self, points):
        variational = gpytorch.variational.NaturalVariationalDistribution(len(points))
        super().__init__(gpytorch.variational.VariationalStrategy(self, points, variational))
        self.mean = gpytorch.means.ConstantMean()
        self.kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

    def forward(self, z):
        return MultivariateNormal(self.mean(z), self.kernel(z))


@pytest.fixture
def parts():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = torch.randn(8, 3).double(), torch.randn(8).double()
    process = SparseProcess(network(x[:4]).detach()).double()
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double()
    natural = gpytorch.optim.NGD(process.variational_parameters(), num_data=8, lr=0.5)
    bound = gpytorch.mlls.VariationalELBO(likelihood, process, num_data=8)
    for _ in range(2):  # away from the prior, where all terms look alike
        natural.zero_grad()
        (-bound(process(network(x)), y)).backward()
        natural.step()
    network.zero_grad()
    return network, process, likelihood, bound, x, y


def test_curvature_under_the_bound_is_that_of_its_terms(parts):
    network, process, likelihood, bound, x, y = parts
    terms = -likelihood.expected_log_prob(y, process(network(x)))
    squares = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
    for term in terms:
        gradients = torch.autograd.grad(term, list(network.parameters()), retain_graph=True)
        for name, gradient in zip(squares, gradients, strict=True):
            squares[name] += gradient.square() / len(x)
    opt = vogn.VOGN(
        network, lr=0.0, ess=8, weight_decay=1e-3, curvature_decay=0.0, variational=False, initial_curvature=0.0
    )
    with opt.sampled_params():
        (-bound(process(network(x)), y)).backward()
    opt.step()
    variance = opt.posterior().variance()
    for name, square in squares.items():
        assert_close(1.0 / (8 * variance[name]) - 1e-3, square)
