"""Networks that a study keeps come back with their buffers and their posterior."""

import pytest
import torch
from torch import nn

import vogn
from benchmarks.classification.networks import keep_network, kept_network, network_path
from vogn.likelihoods import Categorical


def network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_a_network_and_its_posterior_come_back(tmp_path):
    model, x, y = network(0), torch.randn(8, 3), torch.tensor([0, 1] * 4)
    optimizer = vogn.KFAC(model, lr=0.1, ess=8, weight_decay=0.1)
    with optimizer.sampled_params():
        Categorical()(model(x), y).backward()
    optimizer.step()
    path = network_path(tmp_path, "study", "kfac", 3)
    keep_network(path, model, optimizer.posterior())
    other = network(1)
    posterior = kept_network(path, other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    options = {"samples": 3, "seed": 0, "keep_samples": False, "batchnorm": "mean"}
    expected = vogn.predict(model.eval(), optimizer.posterior(), x, **options).mean
    assert torch.equal(vogn.predict(other.eval(), posterior, x, **options).mean, expected)


def test_without_a_posterior_there_is_none(tmp_path):
    path = network_path(tmp_path, "study", "adamw", 0)
    keep_network(path, network(0), None)
    assert kept_network(path, network(1)) is None


def test_a_missing_network_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        kept_network(network_path(tmp_path, "study", "adamw", 0), network(0))
