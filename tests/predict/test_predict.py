"""Prediction: what is averaged, which inputs are accepted."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import linear as affine
from torch.testing import assert_close
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from vogn.likelihoods import Bernoulli, Categorical, Gaussian
from vogn.posterior import Posterior
from vogn.predict import METHODS, drawing, predict


def outputs_of(members, x):
    """The plain loop: ``(S, N, K)``."""
    return torch.stack([affine(x, member["weight"], member["bias"]) for member in members])


def test_the_hand_written_posterior_is_a_posterior(ensemble, members):
    assert isinstance(ensemble(members), Posterior)


def test_probabilities_are_averaged_not_logits(ensemble):
    """Two members with logits (6, 0) and (-2, 0); the average of the logits, (2, 0), has other probabilities."""
    model = nn.Linear(1, 2, bias=False).double()
    rows = torch.tensor([[[6.0], [0.0]], [[-2.0], [0.0]]], dtype=torch.float64)
    posterior = ensemble([{"weight": row} for row in rows])
    prediction = predict(model, posterior, torch.ones(1, 1).double(), samples=2, likelihood=Categorical())
    first, second = 1 / (1 + torch.tensor([-6.0, 2.0]).double().exp())
    assert_close(prediction.mean[0, 0], (first + second) / 2)
    of_averaged_logits = torch.softmax(torch.tensor([2.0, 0.0]).double(), 0)[0]
    assert (prediction.mean[0, 0] - of_averaged_logits).abs() > 0.3


@pytest.mark.parametrize("keep_samples", [True, False])
def test_regression_variance_is_function_variance_plus_noise(linear, ensemble, members, x, keep_samples):
    prediction = predict(
        linear, ensemble(members), x, samples=4, likelihood=Gaussian(noise=0.3), keep_samples=keep_samples
    )
    f = outputs_of(members, x)
    assert_close(prediction.mean, f.mean(0))
    assert_close(prediction.variance, f.var(0, correction=0) + 0.09)


@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli(), Gaussian(0.5)], ids=repr)
def test_streaming_equals_keeping_the_samples(linear, ensemble, members, x, likelihood):
    posterior = ensemble(members)
    kept = predict(linear, posterior, x, samples=4, likelihood=likelihood)
    streamed = predict(linear, posterior, x, samples=4, likelihood=likelihood, keep_samples=False)
    assert kept.samples is not None and kept.samples.shape == (4, 7, 2) and streamed.samples is None
    assert_close(streamed.mean, kept.mean)
    assert_close(streamed.variance, kept.variance)


def test_mean_method_is_the_network_at_the_mean_weights(linear, ensemble, members, x):
    posterior = ensemble(members)
    prediction = predict(linear, posterior, x, method="mean", likelihood=Categorical())
    mean = posterior.mean()
    assert_close(prediction.mean, torch.softmax(affine(x, mean["weight"], mean["bias"]), -1))
    assert prediction.samples is None and prediction.variance.eq(0).all()


def test_nll_is_that_of_the_mixture(linear, ensemble, members, x):
    prediction = predict(linear, ensemble(members), x, samples=4, likelihood=Gaussian(noise=0.5))
    targets = torch.zeros(7, 2, dtype=torch.float64)
    density = torch.distributions.Normal(outputs_of(members, x), 0.5).log_prob(targets).sum(-1).exp()
    assert_close(prediction.nll(targets), -density.mean(0).log())


@pytest.mark.parametrize("batch_size", [1, 3, 7, 256])
def test_batch_size_does_not_matter(linear, ensemble, members, x, batch_size):
    prediction = predict(linear, ensemble(members), x, samples=4, likelihood=Gaussian(), batch_size=batch_size)
    assert_close(prediction.samples, outputs_of(members, x))


@pytest.mark.parametrize("limit, expected", [(1 << 24, [(4, 5, 0)]), (1, [(1, 5, k) for k in range(4)])])
def test_large_models_draw_one_sample_at_a_time(monkeypatch, linear, ensemble, members, x, limit, expected):
    monkeypatch.setattr(drawing, "DRAW_BYTES", limit)
    posterior = ensemble(members)
    prediction = predict(linear, posterior, x, samples=4, seed=5, likelihood=Gaussian())
    assert posterior.calls == expected
    assert_close(prediction.samples, outputs_of(members, x))


class Stream(IterableDataset):
    def __init__(self, x):
        self.x = x

    def __iter__(self):
        return iter(self.x)


SOURCES = {
    "list of inputs": lambda x: list(x.split(3)),
    "list of pairs": lambda x: [(part, torch.zeros(len(part))) for part in x.split(3)],
    "loader of inputs": lambda x: DataLoader(x, batch_size=3),
    "loader of pairs": lambda x: DataLoader(TensorDataset(x, torch.zeros(7)), batch_size=2),
    "loader of singles": lambda x: DataLoader(TensorDataset(x), batch_size=4),
    "loader of a stream": lambda x: DataLoader(Stream(x), batch_size=3),
    "generator": lambda x: (part for part in x.split(3)),
    "own batches": lambda x: DataLoader(x, batch_sampler=[[0, 1, 2], [3, 4, 5, 6]]),
}


@pytest.mark.parametrize("source", SOURCES)
def test_iterables_equal_the_tensor(linear, ensemble, members, x, source):
    prediction = predict(linear, ensemble(members), SOURCES[source](x), samples=4, likelihood=Gaussian())
    assert_close(prediction.samples, outputs_of(members, x))


class TwoInputs(nn.Linear):
    def forward(self, first, second=None, scale=1.0):
        return super().forward(first + second) * scale


@pytest.mark.parametrize(
    "arguments",
    [
        lambda x: (0.25 * x, 0.75 * x),
        lambda x: {"first": 0.25 * x, "second": 0.75 * x, "scale": 1.0},
        lambda x: [((0.25 * part, 0.75 * part), torch.zeros(1)) for part in x.split(3)],
        lambda x: [{"first": part, "second": 0 * part} for part in x.split(3)],
    ],
    ids=["tuple", "dictionary", "pairs of tuples", "dictionaries"],
)
def test_several_model_inputs(ensemble, members, x, arguments):
    model = TwoInputs(3, 2).double()
    prediction = predict(model, ensemble(members), arguments(x), samples=4, likelihood=Gaussian(), batch_size=3)
    assert_close(prediction.samples, outputs_of(members, x))


def test_a_shuffling_loader_raises(linear, ensemble, members, x):
    with pytest.raises(ValueError, match="shuffle=False"):
        predict(linear, ensemble(members), DataLoader(x, shuffle=True), likelihood=Gaussian())


@pytest.mark.parametrize(
    "empty",
    [lambda x: x[:0], lambda x: [], lambda x: iter(()), lambda x: (), lambda x: [x[:0]], lambda x: torch.tensor(1.0)],
)
@pytest.mark.parametrize("method", METHODS)
def test_no_examples_raise(linear, ensemble, members, x, empty, method):
    with pytest.raises(ValueError, match="no examples"):
        predict(linear, ensemble(members), empty(x), method=method, likelihood=Gaussian())


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda x: (x, x[:3]), ValueError, "different numbers of examples"),
        (lambda x: [(x, x, x)], ValueError, "sequence of 3"),
        (lambda x: 3.0, TypeError, "got float"),
    ],
)
def test_unusable_inputs_raise(linear, ensemble, members, x, wrong, error, message):
    with pytest.raises(error, match=message):
        predict(linear, ensemble(members), wrong(x), likelihood=Gaussian())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "magic"}, "'magic'; known methods: linearized, mc, mean"),
        ({"samples": 0}, "samples must be >= 1"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
    ],
)
def test_bad_options_raise(linear, ensemble, members, x, options, message):
    with pytest.raises(ValueError, match=message):
        predict(linear, ensemble(members), x, likelihood=Gaussian(), **options)


def test_the_posterior_may_carry_its_likelihood(linear, ensemble, members, x):
    posterior = ensemble(members)
    with pytest.raises(ValueError, match="pass one, e.g. predict"):
        predict(linear, posterior, x)
    for stored in (Gaussian(0.2), {"kind": "gaussian", "noise": 0.2}):
        posterior.likelihood = stored
        assert_close(predict(linear, posterior, x, samples=1).variance, torch.full((7, 2), 0.04).double())


@pytest.mark.parametrize("method", METHODS)
def test_a_posterior_of_another_model_raises(linear, ensemble, members, x, method):
    stranger = ensemble([{"fc.weight": members[0]["weight"]}])
    with pytest.raises(ValueError, match=r"model lacks: \['fc\.weight'\]"):
        predict(linear, stranger, x, method=method, likelihood=Gaussian())
    misshapen = ensemble([{"weight": members[0]["weight"].T}])
    with pytest.raises(ValueError, match=r"'weight' has shape \(2, 3\) in the model and \(3, 2\) in the posterior"):
        predict(linear, misshapen, x, method=method, likelihood=Gaussian())


def test_parameters_outside_the_posterior_are_used_as_they_are(linear, ensemble, members, x):
    posterior = ensemble([{"weight": member["weight"]} for member in members])
    prediction = predict(linear, posterior, x, samples=4, likelihood=Gaussian())
    expected = outputs_of([{**member, "bias": linear.bias.detach()} for member in members], x)
    assert_close(prediction.samples, expected)


def test_weights_are_cast_to_the_models_dtype(ensemble, members, x):
    model = nn.Linear(3, 2).bfloat16()
    prediction = predict(model, ensemble(members), x.bfloat16(), samples=2, likelihood=Categorical())
    assert prediction.mean.dtype == torch.float32


def test_tied_weights_follow_the_posterior(ensemble, x):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.second(self.first(x))

    weight = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prediction = predict(Tied().double(), ensemble([{"first.weight": weight}]), x, samples=1, likelihood=Gaussian())
    assert_close(prediction.mean, x @ weight.T @ weight.T)


def test_a_model_that_returns_no_tensor_raises(ensemble, x):
    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    with pytest.raises(TypeError, match="got tuple"):
        predict(Pair(), ensemble([{}]), x, method="mean", likelihood=Gaussian())
