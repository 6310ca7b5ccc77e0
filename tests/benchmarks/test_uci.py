"""The regression study: many networks at once are those networks; its score; one tiny cell."""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import vogn
from vogn.likelihoods import Gaussian

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.mark.parametrize("method", ["kfac", "ekfac", "vogn"])
def test_networks_side_by_side_take_the_steps_that_each_would_take_alone(method):
    from benchmarks.uci.networks import ManyNetworks

    torch.manual_seed(0)
    x, y = torch.randn(24, 3, 4, dtype=torch.float64), torch.randn(24, 3, dtype=torch.float64)
    many = ManyNetworks(4, torch.ones(3), hidden=5).double()
    many.noise.fill_(1.0)
    options = {"lr": 0.1, "ess": 24.0, "weight_decay": 0.1, "variational": False, "damping": 0.01, "fisher": "ggn"}
    options |= {"kl_clip": None} if method != "vogn" else {}
    alone = []
    for r in range(3):
        net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 1)).double()
        for layer, source in ((net[0], many.first), (net[2], many.second)):
            layer.weight.data.copy_(source.weight[r])
            layer.bias.data.copy_(source.bias[r])
        alone.append((net, vogn.METHODS[method].build(net, **options)))
    together = vogn.METHODS[method].build(many, **options)
    likelihood = Gaussian(noise=1.0)
    for _ in range(4):
        together.zero_grad()
        with together.sampled_params():
            likelihood(many(x), y).backward()
        together.step()
        for r, (net, opt) in enumerate(alone):
            opt.zero_grad()
            with opt.sampled_params():
                likelihood(net(x[:, r]), y[:, r, None]).backward()
            opt.step()
    for r, (net, _) in enumerate(alone):
        torch.testing.assert_close(many.first.weight[r], net[0].weight)
        torch.testing.assert_close(many.second.bias[r], net[2].bias)


def test_the_scale_of_a_weight_makes_its_prior():
    from benchmarks.uci.networks import ManyNetworks

    torch.manual_seed(0)
    model = ManyNetworks(2, torch.tensor([4.0, 0.25]), hidden=50000)
    with torch.no_grad():
        model.first.weight.normal_()
        model.first.bias.normal_()
        hidden = model.first(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]))
    # a weight and a bias of precision 4 and 1/4: variances 2/4 and 2*4
    torch.testing.assert_close(hidden[0].var(-1), torch.tensor([0.5, 8.0]), rtol=0.03, atol=0.0)


def test_the_log_likelihood_is_that_of_the_mixture_and_the_best_noise_the_best():
    from benchmarks.uci.methods import best_noise, log_likelihood

    torch.manual_seed(0)
    outputs, y = torch.randn(7, 30, dtype=torch.float64), torch.randn(30, dtype=torch.float64)
    weights = torch.distributions.Categorical(torch.ones(30, 7, dtype=torch.float64))
    mixture = torch.distributions.MixtureSameFamily(weights, torch.distributions.Normal(outputs.T, 0.3))
    assert log_likelihood(outputs, y, 0.3) == pytest.approx(float(mixture.log_prob(y).mean()), rel=1e-10)
    one = outputs[:1]
    assert best_noise(one, y) == pytest.approx(float((one[0] - y).square().mean().sqrt()), rel=0.03)


@pytest.mark.parametrize("method", ["noisy K-FAC", "Laplace", "AdamW, 5 networks"])
def test_a_tiny_cell(tmp_path, method):
    from benchmarks.uci.one_run import run_cell
    from benchmarks.uci.report import finished

    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3))
    y = 5.0 + 3.0 * x[:, 0] + generator.normal(size=60)
    orders = [generator.permutation(60) for _ in range(2)]
    parts = {f"train_{k}": order[:50] for k, order in enumerate(orders)}
    parts |= {f"test_{k}": order[50:] for k, order in enumerate(orders)}
    np.savez(tmp_path / "uci_yacht.npz", X=x, y=y, **parts)
    path = tmp_path / "results" / "yacht" / "cell.json"
    run_cell(argparse.Namespace(method=method, data="yacht", splits=2, steps=40, data_dir=tmp_path, cell=path))
    record = json.loads(path.read_text())
    assert [line["split"] for line in record["splits"]] == [0, 1]
    assert all(line["tested"] == 10 and math.isfinite(line["log_likelihood"]) for line in record["splits"])
    assert finished(tmp_path / "results") == {"yacht": {method: record}}


def test_missing_data_are_named(tmp_path):
    from benchmarks.uci.data import split

    with pytest.raises(SystemExit, match="uci_energy.npz"):
        split(tmp_path, "energy", 0, tuning=True)
