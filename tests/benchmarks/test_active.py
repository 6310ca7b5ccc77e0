"""The study of active learning: its references against closed forms, networks that begin equal, one tiny run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


class Lines(nn.Module):
    """``R`` linear models without biases, in units of the noise: their posteriors are known."""

    def __init__(self, count, d):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(count, d))
        self.register_buffer("noise", torch.ones(count))

    def forward(self, x):
        return torch.einsum("nrd,rd->nr", x, self.weight)


def problem(n=12, count=40, d=2):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, d, generator=source).expand(n, count, d)
    y = x @ torch.tensor([1.0, -0.5]) + torch.randn(n, 1, generator=source)
    precision = x[:, 0].T @ x[:, 0] + torch.eye(d)
    return x, y, torch.linalg.solve(precision, x[:, 0].T @ y[:, 0]), torch.linalg.inv(precision)


def test_hamiltonian_monte_carlo_finds_a_known_posterior(monkeypatch):
    import benchmarks.active.hmc as module

    monkeypatch.setattr(module, "FIRST", 60)
    x, y, mean, covariance = problem()
    chains = module.HMC(Lines(40, 2), 1.0)
    chains.update(x, y, steps=0)
    draws = torch.stack([kept["weight"] for kept in chains.kept]).flatten(0, 1)  # 40 chains of 50
    assert torch.allclose(draws.mean(0), mean, atol=0.03)
    assert torch.allclose(torch.cov(draws.T), covariance, atol=0.02)
    assert 0.5 < float(chains.accepted.mean()) < 0.99


def test_mean_field_finds_the_best_diagonal(monkeypatch):
    import benchmarks.active.mean_field as module

    x, y, mean, covariance = problem(count=4)
    monkeypatch.setattr(module, "RATE", 0.02)
    fit = module.MeanField(Lines(4, 2), samples=10, precision=1.0)
    fit.update(x, y, 900)
    best = torch.linalg.inv(covariance).diagonal().rsqrt()  # the diagonal Gaussian nearest in KL(q || p)
    assert torch.allclose(fit.means["weight"].detach(), mean.expand(4, 2), atol=0.06)
    assert torch.allclose(fit.logs["weight"].exp().detach(), best.expand(4, 2), rtol=0.15)


def test_a_tiny_run_and_its_report(tmp_path, monkeypatch, capsys):
    import sys

    from benchmarks.active.__main__ import main

    rows = np.random.default_rng(0).normal(size=(40, 3))
    arrays = {f"{part}_{k}": chosen for k in range(2) for part, chosen in
              (("train", np.arange(30)), ("test", np.arange(30, 40)))}  # fmt: skip
    np.savez(tmp_path / "uci_yacht.npz", X=rows, y=rows[:, 0], **arrays)
    monkeypatch.setattr("benchmarks.active.hmc.FIRST", 3)
    shared = ["--data-dir", str(tmp_path), "--results", str(tmp_path), "--form", "smoke", "--sets", "yacht"]
    for method in ("noisy K-FAC", "mean field"):
        cell = tmp_path / "smoke" / "yacht" / f"{method.replace(' ', '_').lower()}.json"
        words = ["cell", "--data", "yacht", "--method", method, "--cell", str(cell)]
        monkeypatch.setattr(sys, "argv", ["x", *words, *shared])
        assert main() == 0
    record = json.loads(cell.read_text())
    asked, luck = ([run for run in record["runs"] if run["query"] == kind] for kind in ("information gain", "random"))
    assert [run["seed"] for run in asked] == [0, 1] == [run["seed"] for run in luck]
    for one, other in zip(asked, luck, strict=True):
        mine, others = one["labelled"].split(), other["labelled"].split()
        assert mine[:5] == others[:5] and len(set(mine)) == 7
        assert len(one["rmse"]) == 3 and len(one["first_variance"].split()) == 30
    monkeypatch.setattr(sys, "argv", ["x", "report", *shared])
    assert main() == 0
    assert "| noisy K-FAC |" in capsys.readouterr().out
    summary = json.loads((tmp_path / "smoke" / "summary.json").read_text())
    expected = np.mean([run["rmse"][-1] for run in asked])
    assert summary["regression"]["yacht"]["mean field"]["last rmse"][0] == pytest.approx(expected)
    assert (tmp_path / "smoke" / "yacht.png").is_file()
