"""Batch norm statistics that belong to the weight sample they are used with."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import vogn
from vogn.likelihoods import Categorical
from vogn.linalg.layout import MatrixLayout
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.structures import Diagonal


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 2)).double()


def posterior_of(model: nn.Module) -> GaussianPosterior:
    layout = MatrixLayout(("0.weight", "0.bias"), ((5, 3), (5,)), (5, 3))
    structure = Diagonal()
    state = structure.init(layout.block_shape, initial=1.0, dtype=torch.float64, device="cpu")
    block = PosteriorBlock("0.weight", layout, structure, state, shift=0.0, ess=4.0)
    return GaussianPosterior([block], {name: p.detach() for name, p in model.named_parameters()})


def by_hand(model: nn.Module, weights: dict[str, Tensor], batches: list[Tensor], x: Tensor) -> Tensor:
    """Probabilities with statistics averaged over the batches, computed without batch norm's own bookkeeping."""
    last = model[3]
    hidden = [batch @ weights["0.weight"].T + weights["0.bias"] for batch in batches]
    mean = torch.stack([h.mean(0) for h in hidden]).mean(0)
    variance = torch.stack([h.var(0, unbiased=True) for h in hidden]).mean(0)
    h = (x @ weights["0.weight"].T + weights["0.bias"] - mean) / (variance + model[1].eps).sqrt()
    h = h * model[1].weight + model[1].bias
    return (torch.tanh(h) @ last.weight.T + last.bias).softmax(-1)


@pytest.mark.parametrize("keep_samples", [True, False])
@torch.no_grad()
def test_every_weight_sample_gets_its_own_statistics(keep_samples: bool) -> None:
    model = network()
    posterior = posterior_of(model)
    batches = [torch.randn(8, 3, dtype=torch.float64) * scale for scale in (1.0, 3.0)]
    x = torch.randn(4, 3, dtype=torch.float64)
    draws = posterior.sample(3, seed=5)
    expected = torch.stack(
        [by_hand(model, {name: draw[k] for name, draw in draws.items()}, batches, x) for k in range(3)]
    ).mean(0)
    found = vogn.predict(
        model, posterior, x, samples=3, seed=5, likelihood=Categorical(), calibration=batches, keep_samples=keep_samples
    )
    torch.testing.assert_close(found.mean, expected, rtol=1e-10, atol=1e-12)
    shared = vogn.predict(model, posterior, x, samples=3, seed=5, likelihood=Categorical(), batchnorm="mean")
    assert (shared.mean - expected).abs().max() > 1e-3


@torch.no_grad()
def test_the_mean_is_calibrated_too_and_the_model_is_left_alone() -> None:
    model = network().train()
    before = copy.deepcopy(model.state_dict())
    posterior = posterior_of(model)
    batches, x = [torch.randn(8, 3, dtype=torch.float64)], torch.randn(4, 3, dtype=torch.float64)
    found = vogn.predict(model, posterior, x, method="mean", likelihood=Categorical(), calibration=batches)
    torch.testing.assert_close(found.mean, by_hand(model, posterior.mean(), batches, x), rtol=1e-10, atol=1e-12)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(module.training for module in model.modules())
    assert model[1].momentum == 0.1


@torch.no_grad()
def test_update_batchnorm_then_the_mean_equals_calibration() -> None:
    model = network()
    posterior = posterior_of(model)
    batches, x = [torch.randn(8, 3, dtype=torch.float64) for _ in range(2)], torch.randn(4, 3, dtype=torch.float64)
    once = vogn.predict(model, posterior, x, method="mean", likelihood=Categorical(), calibration=batches).mean
    vogn.update_batchnorm(model, batches)
    again = vogn.predict(model, posterior, x, method="mean", likelihood=Categorical()).mean
    torch.testing.assert_close(once, again, rtol=1e-12, atol=1e-14)
