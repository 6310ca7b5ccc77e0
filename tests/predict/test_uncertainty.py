"""Aleatoric and epistemic parts, intervals and out-of-distribution scores, against plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import vogn
from vogn.likelihoods import Bernoulli, Categorical, Gaussian
from vogn.predict.ood import OOD_SCORES

STREAMED = [True, False]


@pytest.fixture
def networks():
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 4)).double() for _ in range(5)]


def predict(networks, likelihood, x, **options):
    return vogn.predict(networks[0], vogn.Ensemble(networks, likelihood=likelihood), x, samples=5, **options)


def entropy(probabilities):
    return -sum(p * math.log(p) for p in probabilities if p > 0)


@pytest.mark.parametrize("keep", STREAMED)
def test_labels_split_into_expected_entropy_and_mutual_information(networks, x, keep):
    found = predict(networks, Categorical(), x, keep_samples=keep)
    for n in range(len(x)):
        rows = [network(x[n]).softmax(-1).tolist() for network in networks]
        mean = [sum(column) / 5 for column in zip(*rows, strict=True)]
        total, expected = entropy(mean), sum(entropy(row) for row in rows) / 5
        information = sum(sum(p * math.log(p / m) for p, m in zip(row, mean, strict=True)) for row in rows) / 5
        assert float(found.total[n]) == pytest.approx(total, abs=1e-12)
        assert float(found.aleatoric[n]) == pytest.approx(expected, abs=1e-12)
        assert float(found.epistemic[n]) == pytest.approx(information, abs=1e-12)


@pytest.mark.parametrize("keep", STREAMED)
def test_binary_labels_split_likewise(networks, x, keep):
    found = predict(networks, Bernoulli(), x, keep_samples=keep)
    p = torch.stack([network(x).sigmoid() for network in networks])
    binary = lambda p: -(p * p.log() + (1 - p) * (1 - p).log()).sum(-1)  # noqa: E731
    assert torch.allclose(found.total, binary(p.mean(0)), atol=1e-12)
    assert torch.allclose(found.aleatoric, binary(p).mean(0), atol=1e-12)
    assert found.total.shape == (len(x),)


@pytest.mark.parametrize("keep", STREAMED)
def test_real_targets_split_into_noise_and_model_variance(networks, x, keep):
    found = predict(networks, Gaussian(noise=0.3), x, keep_samples=keep)
    f = torch.stack([network(x) for network in networks])
    assert torch.allclose(found.epistemic, f.var(0, correction=0), atol=1e-12)
    assert torch.allclose(found.aleatoric, torch.full_like(f[0], 0.09), atol=1e-15)
    assert torch.allclose(found.total, found.variance, atol=0)


def test_certain_and_impossible_labels_have_no_uncertainty():
    model = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2000.0], [-2000.0]]))
    found = vogn.predict(model, vogn.Point(model, likelihood=Categorical()), torch.ones(1, 1, dtype=torch.float64))
    assert found.mean.tolist() == [[1.0, 0.0]]
    assert found.total.tolist() == found.aleatoric.tolist() == found.epistemic.tolist() == [0.0]


def test_members_that_are_sure_of_different_classes_disagree_only():
    """The whole uncertainty, log 2, is about the weights."""
    weights = [{"weight": torch.tensor([[sign * 2000.0], [-sign * 2000.0]])} for sign in (1.0, -1.0)]
    model = nn.Linear(1, 2, bias=False)
    found = vogn.predict(model, vogn.Ensemble(weights, likelihood=Categorical()), torch.ones(1, 1), samples=2)
    assert float(found.aleatoric) == 0.0
    assert float(found.epistemic) == pytest.approx(math.log(2.0), abs=1e-6)


def test_the_mean_network_has_no_epistemic_uncertainty(networks, x):
    found = predict(networks, Categorical(), x, method="mean")
    assert torch.allclose(found.epistemic, torch.zeros(len(x), dtype=torch.float64))


# ------------------------------------------------------------------ intervals


def test_intervals_of_real_targets_hold_their_share_of_the_mixture(networks, x):
    found = predict(networks, Gaussian(noise=0.2), x)
    low, high = found.interval(0.8)
    for end, expected in ((low, 0.1), (high, 0.9)):
        share = torch.stack([torch.distributions.Normal(f, 0.2).cdf(end) for f in found.samples]).mean(0)
        assert torch.allclose(share, torch.full_like(share, expected), atol=1e-12)


def test_intervals_without_samples_are_those_of_a_gaussian(networks, x):
    found = predict(networks, Gaussian(noise=0.2), x, keep_samples=False)
    low, high = found.interval(0.95)
    dense = torch.distributions.Normal(found.mean, found.variance.sqrt())
    assert torch.allclose(dense.cdf(low), torch.full_like(low, 0.025), atol=1e-9)
    assert torch.allclose(dense.cdf(high), torch.full_like(high, 0.975), atol=1e-9)


def test_one_sample_gives_the_interval_of_the_noise(networks, x):
    found = vogn.predict(networks[0], vogn.Point(networks[0], likelihood=Gaussian(noise=0.5)), x, samples=1)
    low, high = found.interval(0.5)
    assert torch.allclose(high - low, torch.full_like(low, 2 * 0.6744897501960817 * 0.5), atol=1e-9)


def test_intervals_of_labels_are_quantiles_of_the_probabilities(networks, x):
    found = predict(networks, Categorical(), x)
    low, high = found.interval(0.6)
    p = torch.stack([network(x).softmax(-1) for network in networks]).detach()
    expected = torch.quantile(p, torch.tensor([0.2, 0.8], dtype=torch.float64), dim=0)
    assert torch.allclose(torch.stack([low, high]), expected, atol=1e-12)


def test_intervals_refuse_what_has_none(networks, x):
    with pytest.raises(ValueError, match="which were not kept: predict with keep_samples=True"):
        predict(networks, Categorical(), x, keep_samples=False).interval()
    for level in (0.0, 1.0, 90, math.nan):
        with pytest.raises(ValueError, match="must lie between 0 and 1"):
            predict(networks, Categorical(), x).interval(level)


# ------------------------------------------------------------------ out of distribution


@pytest.mark.parametrize("keep", STREAMED)
def test_every_score_of_classes_by_a_plain_loop(networks, x, keep):
    found = predict(networks, Categorical(), x, keep_samples=keep)
    f = torch.stack([network(x) for network in networks]).detach()
    p = f.softmax(-1)
    expected = {
        "max_probability": torch.tensor([-max(row) for row in p.mean(0).tolist()], dtype=torch.float64),
        "entropy": found.total,
        "mutual_information": found.epistemic,
        "variance": p.var(0, correction=0).sum(-1),
        "energy": -f.exp().sum(-1).log().mean(0),
    }
    assert expected.keys() == OOD_SCORES.keys()
    for name, value in expected.items():
        assert torch.allclose(vogn.ood_score(found, name), value, atol=1e-12), name


def test_scores_of_real_targets_sum_over_the_outputs(networks, x):
    found = predict(networks, Gaussian(noise=0.3), x)
    f = torch.stack([network(x) for network in networks])
    spread = f.var(0, correction=0).sum(-1)
    assert torch.allclose(vogn.ood_score(found, "variance"), spread, atol=1e-12)
    assert torch.allclose(vogn.ood_score(found, "mutual_information"), spread, atol=1e-12)
    assert torch.allclose(vogn.ood_score(found, "entropy"), spread + 4 * 0.09, atol=1e-12)
    with pytest.raises(ValueError, match="the energy is one of logits of classes"):
        vogn.ood_score(found, "energy")


def test_every_score_is_larger_far_away():
    """A network that is trained on two blobs, asked about a third place where its members disagree."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(100, 2) * 0.3 + 2, torch.randn(100, 2) * 0.3 - 2])
    y = torch.arange(2).repeat_interleave(100)
    members = []
    for _ in range(6):
        model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        for _ in range(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
        members.append(model)
    ensemble = vogn.Ensemble(members, likelihood=Categorical())
    inside = vogn.predict(members[0], ensemble, x, samples=6)
    outside = vogn.predict(members[0], ensemble, torch.randn(100, 2) * 0.3, samples=6)
    for name in OOD_SCORES:
        assert vogn.ood_score(outside, name).median() > vogn.ood_score(inside, name).median(), name


@pytest.mark.parametrize("shape", ["(N,)", "(N, K)"])
def test_scores_of_labels_that_are_no_classes(networks, x, shape):
    class First(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, inputs):
            return self.inner(inputs)[:, 0]

    models = networks if shape == "(N, K)" else [First(network) for network in networks]
    found = predict(models, Bernoulli(), x)
    p = torch.stack([torch.sigmoid(model(x)) for model in models]).detach()
    mean, outputs = p.mean(0), p.var(0, correction=0)
    if shape == "(N,)":
        mean, outputs = mean.unsqueeze(-1), outputs.unsqueeze(-1)
    for n in range(len(x)):
        surest = 1.0
        for q in mean[n].tolist():
            surest *= max(q, 1 - q)
        assert float(vogn.ood_score(found, "max_probability")[n]) == pytest.approx(-surest)
    assert torch.allclose(vogn.ood_score(found, "variance"), outputs.sum(-1))
    assert vogn.ood_scores(found).keys() == OOD_SCORES.keys() - {"energy"}


def test_all_scores_that_there_are(networks, x):
    labels = predict(networks, Categorical(), x)
    assert vogn.ood_scores(labels).keys() == OOD_SCORES.keys()
    real = predict(networks, Gaussian(noise=0.3), x)
    assert vogn.ood_scores(real).keys() == OOD_SCORES.keys() - {"energy", "max_probability"}
    for found in (labels, real):
        for name, values in vogn.ood_scores(found).items():
            assert torch.equal(values, vogn.ood_score(found, name))
    with pytest.raises(ValueError, match="the largest probability is one of labels"):
        vogn.ood_score(real, "max_probability")


def test_an_unknown_score_is_refused(networks, x):
    with pytest.raises(ValueError, match="unknown score 'mahalanobis'; known scores: energy, entropy"):
        vogn.ood_score(predict(networks, Categorical(), x), "mahalanobis")
