"""Every reference against an answer that can be checked by eye."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import vogn
from tiny_models import normal
from vogn.check import Sampler, make_reference
from vogn.check import quadrature as quadratures
from vogn.check.quadrature import quadrature
from vogn.check.reference import is_linear
from vogn.check.target import make_target
from vogn.likelihoods import Bernoulli, Categorical, Gaussian
from vogn.posterior import Point, Prior

QUICK = Sampler(warmup=150, draws=250)


def target_of(case, **options):
    settings = {"prior": case.prior} | options
    return make_target(case.model, Point(case.model), case.likelihood, (case.x, case.y), **settings)


@pytest.mark.parametrize("temperature", [1.0, 0.2, 3.0])
def test_the_exact_reference_is_bayesian_linear_regression(regression, temperature):
    ess = len(regression.x) / temperature
    target = target_of(regression, ess=ess)
    assert target.temperature == pytest.approx(temperature)
    found = make_reference(target, regression.at)
    posterior = regression.exact(ess=ess)
    design = torch.cat([regression.at, torch.ones(len(regression.at), 1)], 1).double()
    covariance = posterior.root @ posterior.root.T
    assert found.name == "exact"
    assert torch.allclose(found.mean[:, 0], design @ posterior.flat, atol=1e-12)
    variance = torch.stack([row @ covariance @ row for row in design])
    assert torch.allclose(found.variance[:, 0], variance, rtol=1e-10)
    low, high = found.intervals[0.9]
    assert torch.allclose((high - low)[:, 0], 2 * 1.6448536269514722 * variance.sqrt(), rtol=1e-10)


def test_several_outputs_and_a_prior_mean(regression):
    model, y = nn.Linear(2, 2, bias=False).double(), normal(15, 2, seed=5)
    prior = Prior({"weight": torch.full((2, 2), 0.7).double()}, 3.0)
    target = make_target(model, Point(model), Gaussian(noise=0.5), (regression.x, y), prior=prior)
    found = make_reference(target, regression.at)
    x = regression.x
    precision = x.T @ x / 0.25 + 3.0 * torch.eye(2).double()
    mean = torch.linalg.solve(precision, x.T @ y / 0.25 + 3.0 * 0.7)
    assert torch.allclose(found.mean, regression.at @ mean, atol=1e-12)


def test_quadrature_agrees_with_the_exact_gaussian():
    model, x, y = nn.Linear(1, 1).double(), normal(9, 1), normal(9, 1, seed=1)
    target = make_target(model, Point(model), Gaussian(noise=0.6), (x, y), prior=Prior(precision=1.5))
    at = normal(7, 1, seed=2)
    found, exact = quadrature(target, at), make_reference(target, at)
    assert torch.allclose(found.mean, exact.mean, atol=1e-9)
    assert torch.allclose(found.variance, exact.variance, rtol=1e-6)
    for level in (0.5, 0.9, 0.95):
        for one, two in zip(found.intervals[level], exact.intervals[level], strict=True):
            assert float(((one - two).abs() / exact.variance.sqrt()).max()) < 0.02  # the spacing of the grid


@pytest.mark.parametrize(("ess", "precision"), [(None, 1.0), (2.5, 1.0), (None, 1e-4)])
def test_quadrature_is_a_sum_over_weights(ess, precision):
    """One weight, separable labels (a skewed posterior), against a sum over a fine grid."""
    model = nn.Linear(1, 1, bias=False).double()
    x = torch.tensor([[-1.0], [-0.4], [0.5], [1.2], [0.9]]).double()
    y = (x > 0).double()
    target = make_target(model, Point(model), Bernoulli(), (x, y), prior=Prior(precision=precision), ess=ess)
    at = torch.tensor([[0.3], [-2.0]]).double()
    found = make_reference(target, at)
    assert found.name == "quadrature"
    spread = 8.0 / math.sqrt(precision)
    w = torch.linspace(-spread, spread, 40001, dtype=torch.float64)
    log_likelihood = nn.functional.logsigmoid(w * x.abs()).sum(0)
    density = ((ess or 5.0) / 5.0 * log_likelihood - 0.5 * precision * w.square()).exp()
    p = torch.sigmoid(w * at)
    mean = (density * p).sum(1, keepdim=True) / density.sum()
    variance = (density * (p - mean).square()).sum(1, keepdim=True) / density.sum()
    assert torch.allclose(found.mean, mean, atol=1e-8, rtol=1e-6)
    assert torch.allclose(found.variance, variance, atol=1e-8, rtol=1e-6)


def test_quadrature_is_the_same_for_few_inputs_at_a_time(monkeypatch):
    model, x, at = nn.Linear(2, 1, bias=False).double(), normal(9, 2), normal(5, 2, seed=1)
    target = make_target(model, Point(model), Bernoulli(), (x, (x[:, :1] > 0).double()), prior=Prior())
    whole = quadrature(target, at)
    seen, plain = [], quadratures.weighted_quantiles

    def spy(samples, *given):
        seen.append(samples.shape[1])
        return plain(samples, *given)

    monkeypatch.setattr(quadratures, "weighted_quantiles", spy)
    monkeypatch.setattr(quadratures, "NUMBERS", 1)
    found = quadrature(target, at)
    assert seen == [1] * 5
    torch.testing.assert_close(found.mean, whole.mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.variance, whole.variance, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.intervals, whole.intervals, rtol=1e-12, atol=1e-14)


def test_two_class_labels_are_summed_like_one_logit():
    """A softmax over (f, -f) with one weight is a sigmoid of 2 f."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.zeros(1).double())

        def forward(self, x):
            return torch.cat([-x * self.w, x * self.w], 1)

    x, at = normal(6, 1), normal(3, 1, seed=1)
    labels = (x[:, 0] > 0.2).long()
    two, one = Two(), nn.Linear(1, 1, bias=False).double()
    softmax = make_target(two, Point(two), Categorical(), (x, labels), prior=Prior())
    sigmoid = make_target(one, Point(one), Bernoulli(), (2 * x, labels[:, None]), prior=Prior())
    found, known = make_reference(softmax, at), make_reference(sigmoid, 2 * at)
    assert torch.allclose(found.mean[:, 1:], known.mean, atol=1e-9)
    assert torch.allclose(found.variance[:, 1:], known.variance, rtol=1e-6)


def test_nuts_agrees_with_the_exact_gaussian(regression):
    """At temperature 2: standard errors from the effective sample size."""
    target = target_of(regression, ess=len(regression.x) / 2)
    exact = make_reference(target, regression.at)
    found = make_reference(target, regression.at, "nuts", sampler=QUICK)
    assert found.name == "nuts" and found.draws == 500 and found.divergences == 0
    assert found.r_hat < 1.05 and found.effective_samples > 50
    error = (exact.variance / found.effective_samples).sqrt()
    assert float(((found.mean - exact.mean) / error).abs().max()) < 4
    assert float((found.variance / exact.variance).log().abs().max()) < 4 * math.sqrt(2 / found.effective_samples)
    assert found.ceiling > 0.9
    again = make_reference(target, regression.at, "nuts", sampler=Sampler(warmup=10, draws=8), seed=1)
    twice = make_reference(target, regression.at, "nuts", sampler=Sampler(warmup=10, draws=8), seed=1)
    assert torch.equal(again.mean, twice.mean)


def test_nuts_seeds_no_generator_of_a_device(regression, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("CUDA generators were seeded"))
    before = torch.get_rng_state()
    make_reference(target_of(regression), regression.at, "nuts", sampler=Sampler(chains=1, warmup=2, draws=4))
    assert torch.equal(before, torch.get_rng_state())


def test_one_chain_has_no_ceiling_and_constant_predictions_no_r_hat(regression):
    regression.model = nn.Linear(2, 1, bias=False).double()
    at = torch.cat([torch.zeros(1, 2).double(), regression.at])
    found = make_reference(target_of(regression), at, "nuts", sampler=Sampler(chains=1, warmup=20, draws=20))
    assert found.ceiling is None and math.isfinite(found.r_hat) and float(found.variance[0]) == 0.0


@pytest.mark.parametrize(
    ("model", "linear"),
    [
        (nn.Linear(2, 1), True),
        (nn.Linear(2, 1, bias=False), True),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)), False),
        (nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)), False),
        (nn.Sequential(nn.Linear(2, 1), nn.Softplus()), False),
    ],
)
def test_linearity_is_found_out(regression, model, linear):
    regression.model = model
    assert is_linear(target_of(regression), regression.at) is linear


def test_a_last_layer_is_linear_in_its_weights(regression, network):
    """The exact answer given the features, as a regression on them."""
    data = [(regression.x, regression.y)]
    posterior = vogn.laplace(network, regression.likelihood, data, subset="last_layer", prior_precision=2.0)
    target = make_target(network, posterior, regression.likelihood, data[0])
    assert target.numel == 4
    found = make_reference(target, regression.at)
    with torch.no_grad():
        features, places = (torch.cat([network[:2](x), torch.ones(len(x), 1)], 1) for x in (data[0][0], regression.at))
    precision = features.T @ features / 0.16 + 2.0 * torch.eye(4).double()
    mean = torch.linalg.solve(precision, features.T @ regression.y / 0.16)
    assert found.name == "exact" and torch.allclose(found.mean, places @ mean, atol=1e-10)


WRONG = [
    ("best", "reference='best': choose 'auto', 'exact', 'quadrature', 'nuts' or a Reference"),
    ("exact", "'exact' needs a model that is linear in its parameters and a Gaussian likelihood; this one has 13"),
    ("quadrature", "'quadrature' needs labels and a model that is linear in at most 2 parameters"),
]


@pytest.mark.parametrize(("kind", "message"), WRONG)
def test_a_reference_that_does_not_apply_is_refused(regression, network, kind, message):
    regression.model = network
    with pytest.raises(ValueError, match=message):
        make_reference(target_of(regression), regression.at, kind)


def test_too_many_parameters_name_limit_and_option(regression, network):
    regression.model = network
    with pytest.raises(ValueError, match=r"13 uncertain .*max_parameters=12.*Sampler\(max_parameters=13\)"):
        make_reference(target_of(regression), regression.at, sampler=Sampler(max_parameters=12))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chains": 0}, "chains=0 is out of range: it must be at least 1"),
        ({"warmup": 0}, "warmup=0"),
        ({"draws": 3}, "draws=3 is out of range: it must be at least 4"),
        ({"tree_depth": 0}, "tree_depth=0"),
        ({"max_parameters": 0}, "max_parameters=0"),
        ({"target_accept": 1.0}, "target_accept=1.0 must lie between 0 and 1"),
    ],
)
def test_a_sampler_out_of_range_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Sampler(**options)
