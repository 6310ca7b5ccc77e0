"""The function-space Gaussian process against a dense loop over Jacobians."""

from __future__ import annotations

import gpytorch
import pytest
import torch
from gpytorch.distributions import MultitaskMultivariateNormal, MultivariateNormal
from torch import nn
from torch.testing import assert_close

import vogn
from vogn.interop.gpytorch import to_gp
from vogn.likelihoods import Categorical, Gaussian
from vogn.predict import jacobian

N = 7


def network(outputs: int, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, outputs)).double()


def inputs() -> torch.Tensor:
    return torch.randn(N, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def laplace(outputs: int, **options) -> vogn.GaussianPosterior:
    y = torch.randn(N, outputs, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    return vogn.laplace(network(outputs), Gaussian(0.3), [(inputs(), y)], **options)


def by_hand(model: nn.Module, posterior: vogn.Posterior, covariance: torch.Tensor, order: list[str]) -> torch.Tensor:
    """``J Sigma J^T`` of all outputs of all inputs, ``(N K, N K)``, one gradient after the other."""
    model = model.eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(posterior.mean()[name])
    parameters, rows = dict(model.named_parameters()), []
    for output in model(inputs()).flatten():
        gradients = torch.autograd.grad(output, [parameters[name] for name in order], retain_graph=True)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows) @ covariance @ torch.stack(rows).T


def swag(outputs: int) -> tuple[vogn.SWAG, torch.Tensor, list[str]]:
    posterior = vogn.SWAG(3)
    for seed in range(5):
        posterior.collect(network(outputs, seed))
    d, u = posterior._flat()
    return posterior, d.diag() + u @ u.T, list(posterior.mean())


def dense_gaussian(posterior: vogn.GaussianPosterior) -> tuple[torch.Tensor, list[str]]:
    """The covariance in the order of the parameters, and that order."""
    order = list(posterior.mean())
    sizes = [posterior.mean()[name].numel() for name in order]
    unit = torch.eye(sum(sizes), dtype=torch.float64)
    parts = {
        name: part.reshape(-1, *posterior.mean()[name].shape)
        for name, part in zip(order, unit.split(sizes, -1), strict=True)
    }
    place = posterior.flatten(parts)  # row i: where parameter i stands in the posterior's order
    return place @ posterior.to_dense() @ place.T, order


@pytest.mark.parametrize("outputs", [1, 3])
@pytest.mark.parametrize("structure", ["kronecker", "diagonal", "dense"])
def test_the_process_of_a_gaussian_posterior(outputs, structure):
    posterior = laplace(outputs, structure=structure)
    found = to_gp(network(outputs), posterior, inputs(), batch_size=3)
    expected = by_hand(network(outputs), posterior, *dense_gaussian(posterior))
    assert_close(found.covariance_matrix, expected)
    assert_close(found.mean.flatten(), network(outputs).eval()(inputs()).flatten())
    assert type(found) is (MultivariateNormal if outputs == 1 else MultitaskMultivariateNormal)


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_process_of_swag(outputs):
    posterior, covariance, order = swag(outputs)
    found = to_gp(network(outputs), posterior, inputs())
    assert_close(found.covariance_matrix, by_hand(network(outputs), posterior, covariance, order))


def test_the_process_of_an_ensemble_has_the_members_covariance():
    posterior = vogn.Ensemble([network(1, seed) for seed in range(4)])
    members = torch.stack(
        [torch.cat([parameter.detach().flatten() for parameter in network(1, seed).parameters()]) for seed in range(4)]
    )
    found = to_gp(network(1), posterior, inputs())
    expected = by_hand(network(1), posterior, torch.cov(members.T, correction=0), list(posterior.mean()))
    assert_close(found.covariance_matrix, expected)


def test_blocks_on_the_diagonal_are_functional_variances():
    posterior, model = laplace(3), network(3)
    found = to_gp(model, posterior, inputs())
    _, slopes = jacobian(model, posterior.mean(), inputs())
    blocks = found.covariance_matrix.reshape(N, 3, N, 3).diagonal(dim1=0, dim2=2).movedim(-1, 0)
    assert_close(blocks, posterior.functional_variance(slopes))
    assert_close(found.variance, blocks.diagonal(dim1=1, dim2=2))


def test_draws_of_several_outputs_stand_where_they_belong():
    found = to_gp(network(3), laplace(3), inputs())
    torch.manual_seed(0)
    draws = found.sample(torch.Size([20000]))
    assert draws.shape == (20000, N, 3)
    error = (draws.mean(0) - found.mean) / (found.stddev / 20000**0.5)
    assert float(error.abs().max()) < 4.5
    assert_close(draws.var(0), found.variance, rtol=0.05, atol=0.0)


def test_the_process_agrees_with_linearized_prediction():
    posterior, model, noise = laplace(1), network(1).eval(), Gaussian(0.3)
    found = to_gp(model, posterior, inputs(), likelihood=noise)
    # the statistics of batch norm are meant to be shared here
    predicted = vogn.predict(model, posterior, inputs(), method="linearized", likelihood=noise, batchnorm="mean")
    assert_close(found.mean, predicted.mean.squeeze(-1))
    assert_close(found.variance, predicted.variance.squeeze(-1), rtol=1e-6, atol=0.0)


def test_a_gaussian_likelihood_adds_its_noise():
    posterior, model = laplace(3), network(3)
    outputs = to_gp(model, posterior, inputs()).covariance_matrix
    for noise in (Gaussian(0.3), Gaussian("learn", initial=0.3)):
        observed = to_gp(model, posterior, inputs(), likelihood=noise).covariance_matrix
        assert_close(observed, outputs + 0.09 * torch.eye(3 * N), rtol=1e-6, atol=1e-6)


def test_gpytorchs_likelihood_takes_it():
    posterior, model = laplace(1), network(1)
    observed = gpytorch.likelihoods.GaussianLikelihood().double()
    observed.noise = 0.09
    expected = to_gp(model, posterior, inputs(), likelihood=Gaussian(0.3))
    found = observed(to_gp(model, posterior, inputs()))
    y = torch.randn(N, dtype=torch.float64)
    assert_close(found.log_prob(y), expected.log_prob(y))


def test_weights_that_do_not_vary_are_not_differentiated(monkeypatch):
    posterior, model, asked = laplace(1, subset="last_layer"), network(1), []
    original = vogn.interop.gpytorch.jacobian
    monkeypatch.setattr(
        vogn.interop.gpytorch, "jacobian", lambda *a, **k: asked.append(sorted(k["names"])) or original(*a, **k)
    )
    found = to_gp(model, posterior, inputs())
    assert asked == [["3.bias", "3.weight"]]
    features = model.eval()[:3](inputs()).detach()
    rows = torch.cat([features, torch.ones(N, 1)], -1)
    (block,) = posterior.sampled_blocks
    assert_close(found.covariance_matrix, rows @ torch.linalg.inv(block.precision_matrix()) @ rows.T)


def test_members_that_share_a_layer_have_no_variance_there():
    members = [network(1, seed) for seed in range(3)]
    for member in members[1:]:
        member[0].load_state_dict(members[0][0].state_dict())
    posterior = vogn.Ensemble(members)
    vectors = [torch.cat([p.detach().flatten() for p in member.parameters()]) for member in members]
    covariance = torch.cov(torch.stack(vectors).T, correction=0)
    expected = by_hand(network(1), posterior, covariance, list(posterior.mean()))
    assert not posterior.variance()["0.weight"].any()
    assert_close(to_gp(network(1), posterior, inputs()).covariance_matrix, expected)


def test_outputs_without_a_second_dimension():
    posterior = vogn.Ensemble([nn.Sequential(nn.Linear(2, 1)).double() for _ in range(3)])
    flat, tall = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double(), nn.Sequential(nn.Linear(2, 1)).double()
    found, expected = to_gp(flat, posterior, inputs()), to_gp(tall, posterior, inputs())
    assert found.mean.shape == (N,)
    assert_close(found.mean, expected.mean)
    assert_close(found.covariance_matrix, expected.covariance_matrix)


def test_what_has_no_process_is_refused():
    model = network(1)
    with pytest.raises(ValueError, match="is a point mass: its process would have no variance"):
        to_gp(model, vogn.Point(model), inputs())
    dropout = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    with pytest.raises(ValueError, match="MCDropout has no covariance over weights"):
        to_gp(dropout, vogn.MCDropout(dropout), inputs())
    with pytest.raises(TypeError, match=r"observations under Categorical\(\) are not Gaussian"):
        to_gp(model, laplace(1), inputs(), likelihood=Categorical())
    words = nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (2, 2)))
    posterior = vogn.Ensemble([nn.Sequential(nn.Linear(2, 4)), nn.Sequential(nn.Linear(2, 4))])
    with pytest.raises(ValueError, match=r"outputs \(N,\) or \(N, K\), this model gives \(7, 2, 2\)"):
        to_gp(words, posterior, inputs().float())
