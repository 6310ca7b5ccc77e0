"""Guides made of posteriors: moments, densities, prediction, evidence lower bounds."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from pyro import distributions as dist
from pyro.infer import Importance, Predictive, Trace_ELBO
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.func import functional_call
from torch.testing import assert_close

import vogn
from vogn.interop.pyro import WeightDistribution, random_weights, to_pyro
from vogn.likelihoods import Gaussian

PRECISION, NOISE = 4.0, 0.3


def inputs():
    return torch.randn(12, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def targets():
    return inputs().sum(-1, keepdim=True).sin()


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)).double()


def laplace(**options):
    return vogn.laplace(network(), Gaussian(NOISE), [(inputs(), targets())], prior_precision=PRECISION, **options)


def swag():
    posterior = vogn.SWAG(3)
    for seed in range(5):
        posterior.collect(network(seed))
    return posterior


POSTERIORS = {
    "gaussian": laplace,
    "dense": lambda: laplace(structure="dense"),
    "swag": swag,
    "mixture": lambda: vogn.Mixture([laplace(), swag()], [1.0, 2.0]),
}


def model_over(net):
    def model(x, y=None):
        return pyro.sample("y", dist.Normal(net(x), NOISE).to_event(2), obs=y)

    return model


def flat(weights):
    return torch.cat([value.flatten() for value in weights.values()])


@pytest.mark.parametrize("kind", POSTERIORS)
def test_log_probability_of_the_guide_is_the_posteriors(kind):
    posterior = POSTERIORS[kind]()
    pyro.set_rng_seed(1)
    trace = pyro.poutine.trace(to_pyro(posterior)).get_trace(inputs())
    weights = {name: trace.nodes[name]["value"] for name in posterior.mean()}
    assert_close(trace.log_prob_sum(), posterior.log_prob(weights))


@pytest.mark.parametrize("kind", [*POSTERIORS, "ensemble"])
def test_moments_of_the_guides_draws_are_the_posteriors(kind):
    posterior = vogn.Ensemble([network(k) for k in range(3)]) if kind == "ensemble" else POSTERIORS[kind]()
    pyro.set_rng_seed(0)
    guide, count = to_pyro(posterior), 1000
    draws = torch.stack([flat(guide(inputs())) for _ in range(count)])
    mean, variance = flat(posterior.mean()), flat(posterior.variance())
    errors = (draws.mean(0) - mean) / (variance / count).sqrt()
    assert float(errors.abs().max()) < 4.0
    assert_close(draws.var(0), variance, rtol=0.25, atol=0.0)  # 5.5 standard errors of a Gaussian's variance


def test_the_distribution_over_a_vector():
    posterior = laplace(structure="dense")
    distribution = WeightDistribution(posterior)
    pyro.set_rng_seed(0)
    draws = distribution.sample(torch.Size([2, 3]))
    assert draws.shape == (2, 3, 13) and distribution.event_shape == (13,)
    weights = distribution.unpack(draws)
    assert weights["0.weight"].shape == (2, 3, 3, 2)
    assert_close(distribution.pack(weights), draws)
    assert_close(distribution.log_prob(draws), posterior.log_prob(weights))
    assert_close(distribution.mean, flat(posterior.mean()))
    assert_close(distribution.variance, flat(posterior.variance()))
    assert_close(distribution.entropy(), posterior.entropy())
    pyro.set_rng_seed(0)
    assert torch.equal(distribution.sample(torch.Size([2, 3])), draws)
    assert distribution.sample().shape == (13,)


def test_predictive_runs_the_network_at_the_draws():
    posterior, net = laplace(), network()
    pyro.set_rng_seed(0)
    predictive = Predictive(
        model_over(random_weights(net, vogn.Prior(0.0, PRECISION))), guide=to_pyro(posterior), num_samples=6
    )
    found = predictive(inputs())
    assert found["y"].shape == (6, 12, 1)
    weights = {name: found[name].reshape(6, *shape.shape) for name, shape in posterior.mean().items()}
    outputs = torch.stack(
        [functional_call(net, {name: value[k] for name, value in weights.items()}, inputs()) for k in range(6)]
    )
    residuals = (found["y"] - outputs).detach() / NOISE
    assert float(residuals.abs().max()) < 4.0 and 0.7 < float(residuals.std()) < 1.3
    assert not torch.equal(weights["0.weight"][0], weights["0.weight"][1])


def test_predictive_averages_to_the_same_as_predict():
    posterior, net = laplace(), network()
    pyro.set_rng_seed(0)
    model = model_over(random_weights(net, vogn.Prior(0.0, PRECISION)))
    found = Predictive(model, guide=to_pyro(posterior), num_samples=600)(inputs())["y"]
    expected = vogn.predict(net, posterior, inputs(), samples=600, likelihood=Gaussian(NOISE))
    errors = (found.mean(0) - expected.mean) / (2 * expected.variance / 600).sqrt()
    assert float(errors.abs().max()) < 4.0
    assert_close(found.var(0), expected.variance, rtol=0.35, atol=0.0)  # two estimates from 600 draws each


class Bayesian(PyroModule):
    """The same network as Pyro's own tutorials write it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = PyroModule[nn.Linear](2, 3), PyroModule[nn.Linear](3, 1)
        for layer in (self.first, self.second):
            for name, value in list(layer.named_parameters()):
                prior = dist.Normal(torch.zeros_like(value).double(), 0.5).to_event(value.ndim)
                setattr(layer, name, PyroSample(prior))

    def forward(self, x, y=None):
        outputs = self.second(self.first(x).tanh())
        return pyro.sample("y", dist.Normal(outputs, NOISE).to_event(2), obs=y)


def test_a_pyro_module_takes_the_guide():
    plain = nn.Sequential()
    plain.first, plain.act, plain.second = nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)
    posterior = vogn.laplace(plain.double(), Gaussian(NOISE), [(inputs(), targets())], prior_precision=PRECISION)
    pyro.set_rng_seed(0)
    found = Predictive(Bayesian(), guide=to_pyro(posterior), num_samples=4)(inputs())
    assert found["y"].shape == (4, 12, 1)
    assert {name for name in found if name != "y"} == set(posterior.mean())


@pytest.mark.parametrize("kind", ["gaussian", "mixture"])
def test_the_evidence_lower_bound_is_log_joint_minus_log_density(kind):
    posterior, net, prior = POSTERIORS[kind](), network(), vogn.Prior(0.0, PRECISION)
    pyro.set_rng_seed(5)
    found = Trace_ELBO().loss(model_over(random_weights(net, prior)), to_pyro(posterior), inputs(), targets())
    pyro.set_rng_seed(5)
    weights = to_pyro(posterior)(inputs())
    residuals = targets() - functional_call(net, weights, inputs())
    log_likelihood = -0.5 * (residuals / NOISE).square().sum() - 12 * math.log(NOISE * math.sqrt(2 * math.pi))
    vector = flat(weights)
    log_prior = 0.5 * (13 * math.log(PRECISION / (2 * math.pi)) - PRECISION * vector.square().sum())
    assert found == pytest.approx(-float(log_likelihood + log_prior - posterior.log_prob(weights)), rel=1e-6)


def test_importance_sampling_corrects_the_posterior_of_a_linear_model():
    """Where the Laplace approximation is exact, all importance weights are the evidence."""
    net = nn.Linear(2, 1).double()
    with torch.no_grad():
        design = torch.cat([inputs(), torch.ones(12, 1)], -1)
        precision = design.T @ design / NOISE**2 + PRECISION * torch.eye(3)
        solution = torch.linalg.solve(precision, design.T @ targets() / NOISE**2).squeeze(-1)
        net.weight.copy_(solution[:2].unsqueeze(0))
        net.bias.copy_(solution[2:])
    posterior = vogn.laplace(net, Gaussian(NOISE), [(inputs(), targets())], prior_precision=PRECISION)
    model = model_over(random_weights(net, vogn.Prior(0.0, PRECISION)))
    pyro.set_rng_seed(0)
    run = Importance(model, guide=to_pyro(posterior), num_samples=5).run(inputs(), targets())
    weights = torch.stack([torch.as_tensor(weight) for weight in run.log_weights])
    marginal = torch.distributions.MultivariateNormal(
        torch.zeros(12), design @ design.T / PRECISION + NOISE**2 * torch.eye(12)
    )
    assert_close(weights.double(), marginal.log_prob(targets().squeeze(-1)).expand(5), rtol=1e-6, atol=1e-6)


def test_a_prefix_names_the_part_of_a_model():
    guide = to_pyro(laplace(), prefix="network.")
    trace = pyro.poutine.trace(guide).get_trace(inputs())
    assert "network.0.weight" in trace.nodes and "0.weight" not in trace.nodes
    model = model_over(random_weights(network(), vogn.Prior(0.0, PRECISION), prefix="network."))
    assert Predictive(model, guide=guide, num_samples=3)(inputs())["y"].shape == (3, 12, 1)


def test_parallel_prediction_with_a_model_that_takes_batches_of_weights():
    posterior = vogn.laplace(nn.Linear(2, 1).double(), Gaussian(NOISE), [(inputs(), targets())])

    def model(x):
        weight = pyro.sample("weight", dist.Normal(torch.zeros(1, 2).double(), 1.0).to_event(2))
        bias = pyro.sample("bias", dist.Normal(torch.zeros(1).double(), 1.0).to_event(1))
        return pyro.sample("y", dist.Normal(x @ weight.mT + bias.unsqueeze(-2), NOISE).to_event(2))

    pyro.set_rng_seed(0)
    found = Predictive(model, guide=to_pyro(posterior), num_samples=5, parallel=True)(inputs())
    assert found["y"].shape == (5, 12, 1)
    assert len({float(value) for value in found["bias"].flatten()}) == 5


def test_one_set_of_weights_per_call():
    random_network = random_weights(network(), vogn.Prior(0.0, PRECISION))
    message = r"holds weights \(12, 3, 2\) instead of \(3, 2\): call the network before"
    with pytest.raises(ValueError, match=message), pyro.plate("examples", 12):
        random_network(inputs())


def test_recurrent_networks_have_random_weights_too():
    net, x = nn.LSTM(2, 1, batch_first=True), torch.randn(4, 3, 2)
    posterior = vogn.Ensemble([nn.LSTM(2, 1, batch_first=True) for _ in range(3)])

    def model(x):
        outputs, _ = random_weights(net, vogn.Prior(0.0, 1.0))(x)
        return pyro.sample("y", dist.Normal(outputs, 0.1).to_event(3))

    assert Predictive(model, guide=to_pyro(posterior), num_samples=3)(x)["y"].shape == (3, 4, 3, 1)


def test_a_prior_with_means_by_name():
    net = network()
    means = {name: parameter.detach() + 1.0 for name, parameter in net.named_parameters()}
    trace = pyro.poutine.trace(random_weights(net, vogn.Prior(means, 1e8))).get_trace(inputs())
    assert_close(trace.nodes["0.bias"]["value"], means["0.bias"], atol=1e-3, rtol=0.0)
    with pytest.raises(ValueError, match="has no mean for parameter '0.weight'"):
        random_weights(net, vogn.Prior({"0.bias": means["0.bias"]}, 1.0))


def test_precisions_of_their_own():
    """A float32 layer and a float64 one."""
    mixed = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1).double())
    values = to_pyro(vogn.Ensemble([mixed]))()
    assert [value.dtype for value in values.values()] == [torch.float32] * 2 + [torch.float64] * 2


def test_what_has_no_density_is_sampled_and_not_scored():
    trace = pyro.poutine.trace(to_pyro(vogn.Point(network()))).get_trace(inputs())
    with pytest.raises(NotImplementedError, match="have no density"):
        trace.log_prob_sum()


def test_dropout_masks_are_no_sites():
    with pytest.raises(ValueError, match="a draw of MCDropout is more than its weights"):
        to_pyro(vogn.MCDropout(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))))


def test_a_posterior_over_a_part_takes_the_rest_from_the_network():
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 1)).double(), torch.randn(40, 2).double()
    posterior = vogn.laplace(network, Gaussian(0.1), [(x, x[:, :1])], subset="last_layer")
    weighed = random_weights(network, vogn.Prior(0.0, 1.0))

    def model(x):
        return pyro.sample("y", dist.Normal(weighed(x), 0.1).to_event(2))

    pyro.set_rng_seed(1)
    guide = to_pyro(posterior, network=network)
    draws = Predictive(model, guide=guide, num_samples=600)(x)["y"]
    expected = vogn.predict(network, posterior, x, samples=600)
    assert_close(draws.mean(0), expected.mean, atol=0.05, rtol=0.0)
    assert_close(draws.std(0), expected.variance.sqrt(), atol=0.0, rtol=0.2)
    assert set(guide()) == {name for name, _ in network.named_parameters()}
    with pytest.raises(ValueError, match="parameters that the model lacks"):
        to_pyro(posterior, network=nn.Linear(2, 1))
