"""Every kind of posterior predicts through the same function, equal to a plain loop over its draws."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp
from torch.testing import assert_close

import vogn
from vogn.likelihoods import Categorical
from vogn.posterior.loading import KINDS

SAMPLES = 5


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(0.4), nn.Linear(8, 4)).double()


def inputs() -> torch.Tensor:
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def gaussian(seed: int = 0) -> vogn.GaussianPosterior:
    labels = torch.arange(6) % 4
    return vogn.laplace(network(seed), Categorical(), [(inputs(), labels)])


def swag() -> vogn.SWAG:
    posterior = vogn.SWAG(3, likelihood=Categorical())
    for seed in range(5):
        posterior.collect(network(seed))
    return posterior


MAKERS = {
    "vogn.posterior.gaussian": gaussian,
    "vogn.posterior.ensemble": lambda: vogn.Ensemble([network(k) for k in range(3)], likelihood=Categorical()),
    "vogn.posterior.point": lambda: vogn.Point(network(0), likelihood=Categorical()),
    "vogn.posterior.mc_dropout": lambda: vogn.MCDropout(network(0), likelihood=Categorical()),
    "vogn.posterior.swag": swag,
    "vogn.posterior.mixture": lambda: vogn.Mixture([gaussian(0), gaussian(1)], [1.0, 3.0]),
}


def test_every_kind_is_here():
    assert MAKERS.keys() == KINDS.keys()


def draws(posterior: vogn.Posterior) -> list[dict[str, torch.Tensor]]:
    stacked = posterior.sample(SAMPLES, seed=2)
    return [{name: tensor[k] for name, tensor in stacked.items()} for k in range(SAMPLES)]


@pytest.mark.parametrize("kind", sorted(set(MAKERS) - {"vogn.posterior.mc_dropout"}))
def test_monte_carlo_equals_a_loop_over_the_draws(kind):
    posterior, model = MAKERS[kind](), network(7)
    found = vogn.predict(model, posterior, inputs(), samples=SAMPLES, seed=2)
    logits = [functional_call(model.eval(), weights, inputs()) for weights in draws(posterior)]
    expected = torch.stack(logits).softmax(-1)
    assert_close(found.samples, expected)
    assert_close(found.mean, expected.mean(0))


@pytest.mark.parametrize("kind", sorted(set(MAKERS) - {"vogn.posterior.mc_dropout"}))
def test_linearized_equals_a_loop_over_the_draws(kind):
    posterior, model = MAKERS[kind](), network(7).eval()
    found = vogn.predict(model, posterior, inputs(), samples=SAMPLES, seed=2, method="linearized")
    mean, expected = posterior.mean(), []
    for weights in draws(posterior):
        change = {name: weights[name] - mean[name] for name in mean}
        output, slope = jvp(lambda w: functional_call(model, w, inputs()), (mean,), (change,))
        expected.append((output + slope).softmax(-1))
    assert_close(found.mean, torch.stack(expected).mean(0))


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_the_mean_weights_predict_alone(kind):
    posterior, model = MAKERS[kind](), network(7)
    found = vogn.predict(model, posterior, inputs(), method="mean")
    assert_close(found.mean, functional_call(model.eval(), posterior.mean(), inputs()).softmax(-1))


def test_an_ensemble_uses_each_member_once():
    members = [network(k).eval() for k in range(3)]
    posterior = vogn.Ensemble(members, likelihood=Categorical())
    found = vogn.predict(network(7), posterior, inputs(), samples=len(posterior), seed=11)
    assert_close(found.samples, torch.stack([member(inputs()).softmax(-1) for member in members]))


def test_dropout_masks_have_no_linearisation():
    with pytest.raises(ValueError, match="a draw of MCDropout is more than its weights.*use method='mc'"):
        vogn.predict(network(0), MAKERS["vogn.posterior.mc_dropout"](), inputs(), method="linearized")
