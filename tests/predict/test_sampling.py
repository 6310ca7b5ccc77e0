"""Which weight samples are drawn, and when they are enough."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import vogn
from tiny_models import fill
from vogn.likelihoods import Bernoulli, Categorical, Gaussian

NOISES = ["independent", "antithetic", "sobol"]


@pytest.fixture
def network():
    return fill(nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)).double())


@pytest.fixture
def predict(around):
    """Independent noise on all weights of linear layers."""

    def predict(model, x, *, deviation=0.3, **options):
        return vogn.predict(model, around(model, deviation), x, **({"likelihood": Categorical()} | options))

    return predict


# ------------------------------------------------------------------ noise


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("method", ["mc", "linearized"])
def test_predictions_are_averages_over_the_posteriors_draws(predict, around, network, x, noise, method):
    found = predict(network, x, noise=noise, samples=6, seed=4, method=method)
    draws = around(network, 0.3).sample(6, seed=4, noise=noise)
    for k in range(6):
        weights = {name: draw[k] for name, draw in draws.items()}
        call = lambda weights: torch.func.functional_call(network, weights, (x,))  # noqa: E731
        expected = call(weights)
        if method == "linearized":
            mean = {name: p.detach() for name, p in network.named_parameters()}
            expected, change = torch.func.jvp(call, (mean,), ({name: weights[name] - mean[name] for name in mean},))
            expected = expected + change
        assert_close(found.samples[k], expected.softmax(-1).detach(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("noise", NOISES)
def test_batch_after_batch_is_all_at_once(predict, network, x, noise):
    options = {"noise": noise, "samples": 8, "seed": 1}
    parts = [predict(network, part, **options).mean for part in x.split(3)]
    assert_close(torch.cat(parts), predict(network, x, **options).mean)


@pytest.mark.parametrize("method", ["mc", "linearized"])
def test_antithetic_pairs_have_the_exact_mean_of_a_linear_network(predict, x, method):
    model = fill(nn.Sequential(nn.Linear(3, 2)).double())
    options = {"likelihood": Gaussian(), "method": method, "link": "mc", "samples": 2}
    assert_close(predict(model, x, noise="antithetic", **options).mean, model(x).detach())
    assert (predict(model, x, **options).mean - model(x)).abs().max() > 0.01


def test_sobol_points_come_closer_to_mean_and_variance(predict, x):
    """Root mean square errors over 30 seeds; both moments of a linear network are known."""
    model = fill(nn.Sequential(nn.Linear(3, 2)).double())
    variance = 0.09 * x.square().sum(-1, keepdim=True).expand(-1, 2)
    centre, errors = model(x).detach(), {}
    for noise in NOISES:
        found = [
            predict(model, x, likelihood=Gaussian(), noise=noise, samples=32, seed=seed, keep_samples=False)
            for seed in range(30)
        ]
        of_mean = torch.stack([each.mean - centre for each in found]).square().mean().sqrt()
        of_variance = torch.stack([each.epistemic / variance - 1 for each in found]).square().mean().sqrt()
        errors[noise] = float(of_mean), float(of_variance)
    assert errors["sobol"][0] < 0.35 * errors["independent"][0]
    assert errors["sobol"][1] < 0.7 * errors["independent"][1]
    assert errors["antithetic"][0] < 1e-12


# ------------------------------------------------------------------ tolerance

LIKELIHOODS = [(Categorical(), 0.03), (Bernoulli(), 0.03), (Gaussian(noise=0.1), 0.2)]


def settled(samples, noise, likelihood, tolerance):
    """The rule, from all predictive means so far ``(S, N, K)``."""
    blocks = samples if noise == "independent" else samples.unflatten(0, (-1, 2)).mean(1)
    if len(blocks) < 8:
        return False
    error = blocks.std(0) / math.sqrt(len(blocks))
    unit = (samples.var(0, correction=0) + 0.01).sqrt() if likelihood.kind == "gaussian" else 1.0
    return bool((error <= tolerance * unit).all())


@pytest.mark.parametrize("noise", ["independent", "antithetic"])
@pytest.mark.parametrize("likelihood, tolerance", LIKELIHOODS, ids=str)
@pytest.mark.parametrize("method", ["mc", "linearized"])
def test_it_stops_at_the_first_look_that_finds_small_errors(predict, network, x, likelihood, tolerance, noise, method):
    options = {"likelihood": likelihood, "noise": noise, "method": method, "link": "mc", "seed": 5}
    everything = predict(network, x, samples=400, **options).samples
    looks = range(8, 401, 8)
    expected = next(count for count in looks if settled(everything[:count], noise, likelihood, tolerance))
    pairs_are_nearly_exact = method == "linearized" and noise == "antithetic"
    assert 16 < expected < 400 or pairs_are_nearly_exact
    found = predict(network, x, samples=400, tolerance=tolerance, **options)
    assert found.samples_used == expected == len(found.samples)
    plain = predict(network, x, samples=expected, **options)
    for name in ("mean", "variance", "aleatoric", "samples", "standard_error"):
        assert_close(getattr(found, name), getattr(plain, name))
    streamed = predict(network, x, samples=400, tolerance=tolerance, keep_samples=False, **options)
    assert streamed.samples_used == expected
    assert_close(streamed.mean, found.mean)


def test_it_draws_no_more_than_it_looks_at(ensemble, network, x):
    weights = {name: p.detach() for name, p in network.named_parameters()}
    posterior = ensemble([weights, {name: 1.1 * tensor for name, tensor in weights.items()}])
    found = vogn.predict(network, posterior, x, samples=400, tolerance=0.01, likelihood=Categorical())
    assert sum(n for n, _, _ in posterior.calls) == found.samples_used < 400


def test_what_cannot_be_reached_ends_at_the_largest_number(predict, network, x):
    found = predict(network, x, samples=20, tolerance=1e-9)
    assert found.samples_used == len(found.samples) == 20 and found.standard_error.max() > 1e-9


def test_a_network_that_is_sure_stops_at_the_first_look(network, x):
    point = vogn.Point(network, likelihood=Categorical())
    assert vogn.predict(network, point, x, samples=100, tolerance=1e-12).samples_used == 8


def test_errors_are_about_as_large_as_asked_for(predict, network, x):
    """Root mean square error of the worst probability over 40 seeds, against 5000 samples."""
    exact = predict(network, x, samples=5000, seed=999, keep_samples=False).mean
    found = [predict(network, x, samples=2000, tolerance=0.02, seed=seed, keep_samples=False) for seed in range(40)]
    errors = torch.stack([each.mean - exact for each in found]).square().mean(0).sqrt()
    assert 0.01 < errors.max() < 0.025


@pytest.mark.parametrize("noise", NOISES)
def test_the_standard_error_is_that_of_independent_averages(predict, network, x, noise):
    found = predict(network, x, samples=16, noise=noise)
    assert found.samples_used == 16
    if noise == "sobol":
        assert found.standard_error is None
        return
    blocks = found.samples if noise == "independent" else found.samples.unflatten(0, (8, 2)).mean(1)
    assert_close(found.standard_error, blocks.std(0) / math.sqrt(len(blocks)))


def test_without_scatter_there_is_no_standard_error(predict, network, x):
    assert predict(network, x, samples=1).standard_error is None
    assert predict(network, x, samples=2, noise="antithetic").standard_error is None
    found = predict(network, x, method="mean")
    assert found.standard_error is None and found.samples_used == 0


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        ({"noise": "halton"}, "unknown noise 'halton'; known: independent, antithetic, sobol"),
        ({"tolerance": 0.0}, "tolerance=0.0 must be a finite number > 0"),
        ({"tolerance": math.nan}, "tolerance=nan must be"),
        ({"noise": "antithetic", "samples": 5}, "samples must be even, got 5"),
        ({"noise": "sobol", "tolerance": 0.1}, "use noise='antithetic' or 'independent'"),
        ({"method": "mean", "tolerance": 0.1}, "method='mean' draws no weight samples: .* or use method='mc'"),
        ({"method": "mean", "noise": "sobol"}, "method='mean' draws no weight samples"),
        ({"method": "linearized", "link": "probit", "noise": "sobol"}, "link='probit' draws .* or use link='mc'"),
        (
            {"method": "linearized", "likelihood": Gaussian(), "tolerance": 0.1},
            "link='exact' draws no weight samples: leave noise and tolerance out, or use link='mc'",
        ),
    ],
)
def test_options_without_a_meaning_are_refused(predict, network, x, options, message):
    with pytest.raises(ValueError, match=message):
        predict(network, x, **options)


def test_posteriors_without_such_draws_are_named(network, x):
    ensemble = vogn.Ensemble([network, network], likelihood=Categorical())
    with pytest.raises(ValueError, match=r"a Ensemble has no draws with noise='sobol'; leave it out \(it has indep"):
        vogn.predict(network, ensemble, x, noise="sobol")


# ------------------------------------------------------------------ progress


@pytest.mark.parametrize(
    "options, calls",
    [
        ({"samples": 4}, "12/12"),
        ({"method": "mean"}, "3/3"),
        ({"method": "linearized", "samples": 4}, "12/12"),
        ({"method": "linearized", "link": "probit"}, "3/3"),
        ({"samples": 400, "tolerance": 0.2}, "24/24"),  # the first look is enough
    ],
)
def test_the_bar_counts_batches_under_weight_samples(predict, network, x, capsys, options, calls):
    loader = torch.utils.data.DataLoader(x, batch_size=3)
    shown = predict(network, loader, deviation=0.05, progress=True, **options)
    written = capsys.readouterr()
    assert f"{calls} batches" in written.err and written.out == ""
    assert_close(shown.mean, predict(network, loader, deviation=0.05, **options).mean)
    assert capsys.readouterr().err == ""
