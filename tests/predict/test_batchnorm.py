"""Recomputed running statistics are plain averages over batches."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from vogn.predict import update_batchnorm


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.5), nn.BatchNorm1d(4))
    model = model.double().train()
    model(torch.randn(5, 3, dtype=torch.float64))
    model[3].eval()
    return model


@pytest.fixture
def weights(ensemble):
    source = torch.Generator().manual_seed(3)
    return [{"0.weight": torch.randn(4, 3, generator=source, dtype=torch.float64)} for _ in range(2)]


def averages(model, weights, batches):
    """Mean of the batch means and of the unbiased batch variances at the first norm layer."""
    inner = [part @ w["0.weight"].T + model[0].bias for w in weights for part in batches]
    return torch.stack([h.mean(0) for h in inner]).mean(0), torch.stack([h.var(0) for h in inner]).mean(0)


@pytest.mark.parametrize("which", ["own weights", "mean weights", "sampled weights"])
def test_statistics_are_the_cumulative_average(model, ensemble, weights, x, which):
    batches = x.split(4)
    if which == "own weights":
        update_batchnorm(model, batches)
        used = [{"0.weight": model[0].weight}]
    elif which == "mean weights":
        update_batchnorm(model, [(part, None) for part in batches], ensemble(weights))
        used = [{"0.weight": (weights[0]["0.weight"] + weights[1]["0.weight"]) / 2}]
    else:
        update_batchnorm(model, iter(batches), ensemble(weights), samples=2)
        used = weights
    mean, variance = averages(model, used, batches)
    assert_close(model[1].running_mean, mean.detach())
    assert_close(model[1].running_var, variance.detach())
    assert model[1].num_batches_tracked == 2 * len(used)


def test_dropout_is_off(model, x):
    """The second norm sees the first one's output in training mode, with nothing dropped: batch mean = bias."""
    update_batchnorm(model, [x])
    assert_close(model[3].running_mean, model[1].bias.detach())


def test_flags_momenta_parameters_and_random_state_are_kept(model, ensemble, weights, x):
    parameters = {name: p.detach().clone() for name, p in model.named_parameters()}
    flags, state = [module.training for module in model.modules()], torch.get_rng_state()
    update_batchnorm(model, DataLoader(x, batch_size=4, shuffle=True), ensemble(weights), samples=2)
    assert [module.training for module in model.modules()] == flags
    assert (model[1].momentum, model[3].momentum) == (0.3, 0.1)
    assert torch.get_rng_state().equal(state)
    assert all(p.equal(parameters[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("loader", ["empty", "broken"])
def test_an_exception_restores_the_old_statistics(model, x, loader):
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    flags = [module.training for module in model.modules()]
    error, message = (ValueError, "loader is empty") if loader == "empty" else (RuntimeError, "shape")
    with pytest.raises(error, match=message):
        update_batchnorm(model, [] if loader == "empty" else [x, x[:, :2]])
    assert all(buffer.equal(before[name]) for name, buffer in model.named_buffers())
    assert [module.training for module in model.modules()] == flags
    assert model[1].momentum == 0.3


def test_models_without_running_statistics_are_left_alone(x):
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2, track_running_stats=False)).double()
    update_batchnorm(model, [x])
    assert model[1].running_mean is None


@pytest.mark.parametrize("samples", [-1, 1])
def test_samples_need_a_posterior(model, x, samples):
    with pytest.raises(ValueError, match="samples must be >= 0"):
        update_batchnorm(model, [x], samples=samples)


def test_a_posterior_of_another_model_raises(model, ensemble, x):
    with pytest.raises(ValueError, match=r"model lacks: \['fc'\]"):
        update_batchnorm(model, [x], ensemble([{"fc": torch.zeros(1)}]))
