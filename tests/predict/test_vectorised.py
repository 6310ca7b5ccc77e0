"""Several weight samples in one call of the model change nothing but the time."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import vogn
from tiny_models import fill, normal
from vogn.likelihoods import Categorical, Gaussian
from vogn.predict import methods, vectorised


class Last(nn.Module):
    """The last state of a recurrent layer, which vmap cannot run."""

    def __init__(self):
        super().__init__()
        self.layer = nn.LSTM(3, 4, batch_first=True)

    def forward(self, x):
        return self.layer(x.view(len(x), -1, 3))[0][:, -1]


class Branch(nn.Linear):
    """Its path depends on a value."""

    def forward(self, x):
        y = super().forward(x)
        return y if float(y.sum()) > 0 else 2.0 * y


class Listed(nn.Linear):
    def forward(self, x):
        return torch.tensor(super().forward(x).tolist(), dtype=x.dtype)


class Counts(nn.Linear):
    """PyTorch vectorises histograms by a slow loop, and says so."""

    def forward(self, x):
        y = super().forward(x)
        return y + torch.histc(y.detach(), 4)


class Filled(nn.Linear):
    """Writes into a tensor of its own."""

    def forward(self, x):
        y = torch.zeros(len(x), self.out_features, dtype=x.dtype)
        y[:] = super().forward(x)
        return y


class Noisy(nn.Linear):
    """Draws random numbers, other ones in every call."""

    def forward(self, x):
        return super().forward(x) + torch.randn(len(x), self.out_features, dtype=x.dtype)


class Counter(nn.Linear):
    """Its output depends on how often it was called, which a buffer holds; every weight sample starts anew."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * self.calls


class Statistics(nn.Linear):
    """Writes something that depends on the weights into a buffer."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        y = super().forward(x)
        self.seen.copy_(y.mean(0))
        return y - self.seen


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.square()

    @staticmethod
    def backward(ctx, g):
        raise NotImplementedError


class Custom(nn.Linear):
    def forward(self, x):
        return Square.apply(super().forward(x))


class Constant(nn.Linear):
    """Does not use its weights."""

    def forward(self, x):
        return torch.ones(len(x), 4, dtype=x.dtype)


VECTORISED = {
    "perceptron": lambda: nn.Sequential(nn.Linear(12, 5), nn.ReLU(inplace=True), nn.Linear(5, 4)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (3, 2, 2)), nn.Conv2d(3, 4, 2), nn.Flatten()),
    "norms": lambda: nn.Sequential(nn.Linear(12, 4), nn.BatchNorm1d(4), nn.LayerNorm(4), nn.Dropout(0.5)),
    "constant": lambda: Constant(12, 4),
    "counter": lambda: Counter(12, 4),
}
LOOPED = {
    "lstm": Last,
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 4)), nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), nn.Flatten()
    ),
    "branch": lambda: Branch(12, 4),
    "list": lambda: Listed(12, 4),
    "histogram": lambda: Counts(12, 4),
    "own memory": lambda: Filled(12, 4),
    "random": lambda: Noisy(12, 4),
    "statistics": lambda: Statistics(12, 4),
    "custom": lambda: Custom(12, 4),
}


def members(model, count):
    """Copies of the model's parameters, each a little different."""
    return [
        {name: p.detach() + 0.2 * normal(*p.shape, seed=31 * k + 1) for name, p in model.named_parameters()}
        for k in range(count)
    ]


def calls(monkeypatch):
    """How often a single weight sample is evaluated."""
    found, plain = [], methods.evaluate
    monkeypatch.setattr(methods, "evaluate", lambda *arguments: found.append(1) or plain(*arguments))
    return found


def chunks(monkeypatch):
    """The chunk size of every call for several weight samples."""
    found, plain = [], vectorised.vmap

    def spy(*given, **options):
        found.append(options.get("chunk_size"))
        return plain(*given, **options)

    monkeypatch.setattr(vectorised, "vmap", spy)
    return found


@pytest.mark.parametrize("name", [*VECTORISED, *LOOPED])
@pytest.mark.parametrize("batch_size", [256, 3])
def test_the_samples_are_those_of_one_call_each(name, batch_size, monkeypatch):
    model = fill((VECTORISED | LOOPED)[name]().double())
    posterior = vogn.Ensemble(members(model, 5), likelihood=Gaussian())
    x, options = normal(7, 12, seed=3), {"samples": 5, "batch_size": batch_size, "batchnorm": "mean"}
    single = calls(monkeypatch)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = vogn.predict(model, posterior, x, **options)
    assert len(single) == (0 if name in VECTORISED else 5)
    monkeypatch.setattr(vectorised, "WORK", 0)
    assert_close(found.samples, vogn.predict(model, posterior, x, **options).samples, rtol=1e-12, atol=1e-12)
    assert len(single) == (5 if name in VECTORISED else 10)


def test_batch_norm_has_the_statistics_of_every_sample(monkeypatch):
    model = fill(VECTORISED["norms"]().double())
    posterior = vogn.Ensemble(members(model, 4), likelihood=Categorical())
    x, options = normal(7, 12, seed=3), {"samples": 4, "calibration": normal(20, 12, seed=5)}
    single, together = calls(monkeypatch), chunks(monkeypatch)
    found = vogn.predict(model, posterior, x, **options)
    assert not single and len(together) == 1
    monkeypatch.setattr(vectorised, "WORK", 0)
    assert_close(found.samples, vogn.predict(model, posterior, x, **options).samples)
    assert len(single) == 4 and len(together) == 1


def test_few_samples_at_a_time_are_all_at_once(monkeypatch):
    model = fill(VECTORISED["perceptron"]().double())
    posterior = vogn.Ensemble(members(model, 7), likelihood=Categorical())
    x = normal(5, 12, seed=3)
    whole = vogn.predict(model, posterior, x, samples=7)
    single, together = calls(monkeypatch), chunks(monkeypatch)
    monkeypatch.setattr(vectorised, "INPUTS", 2 * x.numel())
    assert_close(vogn.predict(model, posterior, x, samples=7).samples, whole.samples)
    assert not single and together == [2]


def test_a_batch_that_is_too_large_sends_every_sample_through_the_loop(monkeypatch):
    """Also where smaller batches came first."""
    model = fill(VECTORISED["perceptron"]().double())
    posterior = vogn.Ensemble(members(model, 3), likelihood=Categorical())
    single, batches = calls(monkeypatch), [normal(2, 12), normal(9, 12)]
    whole = vogn.predict(model, posterior, batches, samples=3)
    assert not single
    monkeypatch.setattr(vectorised, "WORK", 5 * 12 * sum(p.numel() for p in model.parameters()))
    assert_close(vogn.predict(model, posterior, batches, samples=3).samples, whole.samples)
    assert len(single) == 3


def test_vectorising_is_tried_once(monkeypatch):
    model, tried = fill(Branch(12, 4).double()), chunks(monkeypatch)
    posterior = vogn.Ensemble(members(model, 3), likelihood=Categorical())
    vogn.predict(model, posterior, normal(5, 12), samples=24, tolerance=1e-9)
    assert len(tried) == 1


def test_a_models_own_error_is_its_own():
    class Failing(nn.Linear):
        def forward(self, x):
            raise KeyError("the model's own")

    model = Failing(12, 4).double()
    posterior = vogn.Ensemble(members(model, 3), likelihood=Categorical())
    with pytest.raises(KeyError, match="the model's own"):
        vogn.predict(model, posterior, normal(5, 12), samples=3)


def test_draws_that_are_more_than_weights_are_never_vectorised(monkeypatch):
    model = nn.Sequential(nn.Linear(12, 8), nn.Dropout(0.5), nn.Linear(8, 4)).double()
    single = calls(monkeypatch)
    found = vogn.predict(model, vogn.MCDropout(model, likelihood=Categorical()), normal(5, 12), samples=4)
    assert len(single) == 4 and not found.samples[0].equal(found.samples[1])
