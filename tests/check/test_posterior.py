"""The comparison: every number by a plain computation, and what it says in words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

import vogn
from tiny_models import normal
from vogn.check import Sampler
from vogn.likelihoods import Bernoulli, Categorical
from vogn.posterior import Prior


def check(case, posterior, **options):
    settings = {"prior": case.prior, "at": case.at} | options
    return vogn.check_posterior(case.model, posterior, case.likelihood, (case.x, case.y), **settings)


def test_the_exact_posterior_is_trusted(regression):
    found = check(regression, regression.exact(), samples=4000)
    assert found.reference.name == "exact" and found.trusted and found.verdict.reasons == ()
    assert (found.inputs, found.samples, found.parameters, found.ess, found.temperature) == (40, 4000, 3, 15.0, 1.0)
    assert found.mean_error.value < 4 / 4000**0.5
    assert found.variance_ratio.value == pytest.approx(1.0, abs=4 * (2 / 4000) ** 0.5)
    assert found.variance_correlation.value > 0.99 and found.std_correlation.value > 0.99
    for level, estimate in found.coverage.items():
        assert estimate.value == pytest.approx(level, abs=0.03)
        assert estimate.low <= estimate.value <= estimate.high
    assert found.r_hat is found.divergences is found.effective_samples is None


def test_every_number_is_a_plain_one(regression):
    posterior = regression.exact(scale=1.3, shift=0.1)
    found = check(regression, posterior, samples=50, seed=3)
    weights, reference = posterior.sample(50, seed=3), found.reference
    outputs = np.stack([(regression.at @ w.T + b).numpy()[:, 0] for w, b in zip(*weights.values(), strict=True)])
    mean, variance = outputs.mean(0), outputs.var(0)
    ref_mean, ref_variance = reference.mean.numpy()[:, 0], reference.variance.numpy()[:, 0]
    rmse = np.sqrt(((mean - ref_mean) ** 2).mean())
    assert found.mean_rmse.value == pytest.approx(rmse)
    assert found.mean_error.value == pytest.approx(rmse / np.sqrt(ref_variance.mean()))
    assert found.variance_correlation.value == pytest.approx(np.corrcoef(variance, ref_variance)[0, 1])
    assert found.std_correlation.value == pytest.approx(np.corrcoef(variance**0.5, ref_variance**0.5)[0, 1])
    ratios = np.sort(variance / ref_variance)
    assert found.variance_ratio.value == pytest.approx(ratios[19])  # the lower median of 40
    low, high = (end.numpy()[:, 0] for end in reference.intervals[0.9])
    inside = sum(low[n] <= output[n] <= high[n] for output in outputs for n in range(40))
    assert found.coverage[0.9].value == pytest.approx(inside / outputs.size)


@pytest.mark.parametrize(
    ("scale", "shift", "word", "reason"),
    [
        (0.3, 0.0, "distrust", "too narrow"),
        (0.6, 0.0, "care", "too narrow"),
        (3.0, 0.0, "distrust", "too wide"),
        (1.0, 0.4, "distrust", "its mean is off by"),
    ],
)
def test_wrong_posteriors_are_found(regression, scale, shift, word, reason):
    found = check(regression, regression.exact(scale=scale, shift=shift))
    assert found.verdict.word == word and reason in str(found.verdict)
    if shift == 0:
        assert found.variance_ratio.value == pytest.approx(scale**2, rel=0.15)


def test_uncertainty_in_the_wrong_places_is_found(regression):
    """The same average variance at every input, whatever the input: only the bias varies."""
    posterior = regression.exact()
    posterior.root = torch.diag(torch.tensor([1e-3, 1e-3, 0.2]).double())
    found = check(regression, posterior)
    assert found.std_correlation.value < 0.9 and not found.trusted


@pytest.mark.parametrize("temperature", [0.25, 1.0])
def test_the_reference_has_the_temperature_of_the_posterior(regression, temperature):
    """ess = terms / temperature: the tempered posterior, not the Bayesian one."""
    optimum = regression.exact(ess=15 / temperature).mean()
    regression.model.load_state_dict(optimum)
    data = [(regression.x, regression.y)]
    posterior = vogn.laplace(
        regression.model, regression.likelihood, data, structure="dense", prior_precision=2.0, temperature=temperature
    )
    found = check(regression, posterior, prior=None)
    assert found.trusted and found.ess == pytest.approx(15 / temperature)
    assert found.temperature == pytest.approx(temperature)
    assert ("temperature 0.25" in str(found)) is (temperature == 0.25)
    bayes = check(regression, posterior, prior=None, ess=15)
    assert bayes.variance_ratio.value == pytest.approx(temperature, rel=0.3)


def test_a_posterior_tempered_as_a_whole_is_that_of_a_tempered_prior_too(regression):
    """tempered() multiplies ess and, with it, the prior precision ess * weight_decay."""
    regression.model.load_state_dict(regression.exact().mean())
    whole = vogn.laplace(regression.model, regression.likelihood, [(regression.x, regression.y)], structure="dense",
                         prior_precision=2.0).tempered(0.5)  # fmt: skip
    found = check(regression, whole, prior=None)
    assert found.trusted and found.ess == 30.0
    known = check(regression, whole, prior=Prior(precision=4.0), ess=30.0)
    assert torch.equal(found.reference.variance, known.reference.variance)


def test_every_block_keeps_its_prior_precision(regression, network):
    data = (regression.x, regression.y)
    posterior = vogn.laplace(network, regression.likelihood, [data], subset=["2"])
    tuned = vogn.with_prior_precision(posterior, {"2": 7.0})
    found = vogn.check_posterior(network, tuned, regression.likelihood, data)
    known = vogn.check_posterior(network, tuned, regression.likelihood, data, prior=Prior(precision=7.0))
    assert torch.equal(found.reference.mean, known.reference.mean)


def test_linearized_predictions_and_labels(regression):
    """Logistic regression by quadrature: the comparison is one of probabilities."""
    model, labels = nn.Linear(2, 1, bias=False).double(), (regression.x[:, :1] > 0).double()
    posterior = vogn.laplace(model, Bernoulli(), [(regression.x, labels)], structure="dense")
    for method in ("mc", "linearized"):
        found = vogn.check_posterior(model, posterior, Bernoulli(), (regression.x, labels), method=method)
        assert found.reference.name == "quadrature"
        assert float(found.reference.mean.min()) > 0 and float(found.reference.mean.max()) < 1
    with pytest.raises(ValueError, match="method='mean' has no weight samples"):
        vogn.check_posterior(model, posterior, Bernoulli(), (regression.x, labels), method="mean")


def test_nuts_is_the_reference_of_a_network_and_prints_its_diagnostics(regression, network):
    """Far too short chains: no verdict, whatever the posterior is like."""
    regression.model = network
    data = (regression.x, regression.y)
    posterior = vogn.laplace(network, regression.likelihood, [data])
    found = check(regression, posterior, prior=None, sampler=Sampler(warmup=3, draws=4, tree_depth=2), samples=20)
    assert found.reference.name == "nuts" and found.verdict.word == "unknown"
    assert found.r_hat is not None and found.reference.draws == 8
    text = str(found)
    for part in ("NUTS", "largest R-hat", "divergences", "of 8", "No verdict", "vogn.check.Sampler"):
        assert part in text
    again = check(regression, posterior, prior=None, reference=found.reference, samples=20)
    assert again.reference is found.reference and again.mean_error == found.mean_error


@pytest.mark.slow
def test_a_wide_network_agrees_with_nuts(regression):
    """Strong prior, one hidden layer: the exact posterior is near Gaussian and Laplace is near it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    data, prior = (regression.x, regression.y), 20.0
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=500, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        penalty = 0.5 * prior / 15 * sum(p.square().sum() for p in model.parameters())
        loss = regression.likelihood(model(data[0]), data[1]) + penalty
        loss.backward()
        return loss

    optimizer.step(closure)
    posterior = vogn.laplace(
        model, regression.likelihood, [data], structure="dense", prior_precision=prior, partition="model"
    )
    found = vogn.check_posterior(model, posterior, regression.likelihood, data, at=regression.at, method="linearized")
    assert found.r_hat < 1.05 and found.verdict.word in ("trust", "care")
    assert found.std_correlation.value > 0.5 and 0.2 < found.variance_ratio.value < 5


def test_any_posterior_will_do_with_a_prior(regression):
    members = [nn.Linear(2, 1).double() for _ in range(3)]
    found = check(regression, vogn.Ensemble(members), samples=3)
    assert found.parameters == 3 and found.verdict.word == "distrust"
    point = check(regression, vogn.Point(members[0]), samples=2)
    assert point.variance_ratio.value == 0.0 and np.isnan(point.variance_correlation.value)
    assert "too narrow" in str(point.verdict)


def test_nothing_of_the_users_is_disturbed(regression):
    model = nn.Sequential(nn.Linear(2, 1), nn.Dropout(0.5))  # float32, training
    posterior = vogn.laplace(model, regression.likelihood, [(regression.x.float(), regression.y.float())])
    state, before = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    data = (regression.x.float(), regression.y.float())
    vogn.check_posterior(
        model, posterior, regression.likelihood, data, reference="nuts", sampler=Sampler(warmup=2, draws=4), samples=5
    )
    assert torch.equal(before, torch.get_rng_state()) and model.training and model[1].training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_a_gpu_is_checked_on_the_cpu(regression):
    model, data = regression.model.cuda(), (regression.x.cuda(), regression.y.cuda())
    likelihood = vogn.likelihoods.Gaussian(noise="learn", initial=0.4)
    likelihood.log_noise.data = likelihood.log_noise.data.cuda()
    posterior = vogn.laplace(model, likelihood, [data], structure="dense", prior_precision=2.0)
    found = vogn.check_posterior(model, posterior, likelihood, data, at=regression.at.cuda(), method="linearized")
    assert found.reference.name == "exact" and found.reference.mean.device.type == "cpu"
    assert model.weight.is_cuda and likelihood.log_noise.is_cuda


def test_the_result_is_frozen_and_prints_a_table(regression):
    found = check(regression, regression.exact())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.samples = 3
    text = str(found)
    for part in ("3 parameters at 40 inputs", "the exact Gaussian posterior", "90 % interval", "Trust it here"):
        assert part in text
    assert found.__rich__().renderables[0].row_count == 8


def nan(tensor):
    out = tensor.clone()
    out[2, 0] = torch.nan
    return out


def test_what_cannot_be_checked_is_refused(regression, network):
    x, y, posterior = regression.x, regression.y, regression.exact()
    wrong = [
        ({"data": (nan(x), y)}, "the inputs hold 1 NaN or infinite numbers of 30"),
        ({"data": (x, nan(y))}, "the targets hold 1 NaN or infinite numbers of 15"),
        ({"at": nan(regression.at)}, "the inputs at= hold 1 NaN"),
        ({"data": x}, r"data must be \(inputs, targets\)"),
        ({"samples": 1}, "samples=1 must be at least 2"),
        ({"ess": -1.0}, "ess=-1.0 must be a positive finite number"),
        ({"at": regression.at[:1]}, "at= holds one input"),
        ({"prior": None}, "no prior precision is known for weight, bias: the posterior does not store one; pass"),
        ({"posterior": vogn.Point(network)}, r"the posterior has parameters that the model lacks: \['0.weight'"),
    ]
    for options, message in wrong:
        settings = {"posterior": posterior, "data": (x, y), "prior": regression.prior} | options
        arguments = [settings.pop("posterior"), regression.likelihood, settings.pop("data")]
        with pytest.raises(ValueError, match=message):
            vogn.check_posterior(regression.model, *arguments, **settings)
    with pytest.raises(ValueError, match="it must come from a check at the same inputs"):
        check(regression, posterior, reference=check(regression, posterior, at=x).reference)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "bayes"}, "unknown prediction method 'bayes'"),
        ({"method": "mean"}, "method='mean' has no weight samples"),
        ({"at": normal(1, 2)}, "at= holds one input"),
        ({"samples": 1}, "samples=1 must be at least 2"),
    ],
)
def test_what_cannot_work_is_refused_before_the_reference_is_made(regression, network, options, message, monkeypatch):
    made = []
    monkeypatch.setattr(vogn.check.posterior, "make_reference", lambda *given, **options: made.append(1))
    regression.model = network
    with pytest.raises(ValueError, match=message):
        check(regression, vogn.Point(network), **options)
    assert not made


def test_a_posterior_without_weight_decay_needs_a_prior(regression):
    data = (regression.x, regression.y)
    posterior = vogn.laplace(regression.model, regression.likelihood, [data], structure="dense")
    flat = vogn.GaussianPosterior(
        [dataclasses.replace(block, shift=0.0) for block in posterior.blocks], posterior.mean()
    )
    with pytest.raises(ValueError, match="the posterior was made with weight_decay=0; pass prior="):
        vogn.check_posterior(regression.model, flat, regression.likelihood, data)
    mixed = vogn.GaussianPosterior(
        [dataclasses.replace(block, ess=block.ess * (k + 1)) for k, block in enumerate(
            vogn.laplace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double(), regression.likelihood, [data]).blocks
        )],
        vogn.laplace(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double(), regression.likelihood, [data]).mean(),
    )  # fmt: skip
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)).double()
    with pytest.raises(ValueError, match=r"different effective sample sizes, \[15.0, 30.0\]: pass ess="):
        vogn.check_posterior(model, mixed, regression.likelihood, data)


def test_a_model_that_returns_no_tensor_is_refused(regression):
    class Pair(nn.Linear):
        def forward(self, x):
            return (super().forward(x),)

    regression.model = Pair(2, 1).double()
    with pytest.raises(TypeError, match="the model returns tuple; give a module that returns the tensor"):
        check(regression, regression.exact())


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)

    def forward(self, left, right):
        return self.layer(left * right)


def test_inputs_may_be_a_tuple_or_a_dictionary():
    model, left, right = Keywords().double(), normal(9, 2), normal(9, 2, seed=1)
    labels = (left[:, 0] > 0).long()
    for inputs in ((left, right), {"left": left, "right": right}):
        posterior = vogn.laplace(model, Categorical(), [(inputs, labels)])
        found = vogn.check_posterior(
            model, posterior, Categorical(), (inputs, labels), sampler=Sampler(warmup=2, draws=4), samples=4
        )
        assert found.reference.mean.shape == (9, 2)
