"""Where a sweep has chosen a rate far below a Newton step, a run at a tenth of one is asked too."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vogn
from tiny_models import batch, fill
from vogn.likelihoods import Categorical
from vogn.optim.range_choice import STRIDE


def after(monkeypatch, choice, loss_at):
    """The range test of a sweep that chooses ``choice``, whose short runs end at ``loss_at(rate)``; rates that ran."""
    ran = []

    def run_ends(optimizer, model, likelihood, loader, rate, steps, **options):
        ran.append(rate)
        loss = loss_at(rate)
        return [] if loss is None else [loss + 0.001 * (k % 3) for k in range(30)]

    monkeypatch.setattr("vogn.optim.range_test.run_ends", run_ends)
    monkeypatch.setattr("vogn.optim.range_test.choose", lambda rates, losses: choice)
    torch.manual_seed(0)
    model = fill(nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3)).double())
    x, _ = batch(64)
    loader = DataLoader(TensorDataset(x, x.argmax(1)), batch_size=16)
    opt = vogn.VOGN(model, ess=64.0, weight_decay=0.01, damping=0.01)
    return vogn.learning_rate_range_test(opt, model, Categorical(), loader, steps=20), ran


def two_basins(rate):
    """Lowest at 4e-4 among its neighbours, and much lower around 0.1."""
    near, far = abs(math.log10(rate / 4e-4)), abs(math.log10(rate / 0.1))
    return min(1.0 + near, 0.2 + far)


def test_a_basin_far_from_the_sweep_is_found(monkeypatch):
    found, ran = after(monkeypatch, 4e-4, two_basins)
    assert 0.1 in ran and found.suggestion == pytest.approx(0.1 / math.sqrt(STRIDE))
    assert len(ran) == len(set(ran)), "no run is made twice"


def test_it_must_be_better(monkeypatch):
    found, ran = after(monkeypatch, 4e-4, lambda rate: abs(math.log10(rate / 4e-4)))
    assert 0.1 in ran and found.suggestion == 4e-4
    assert {rate for rate, _ in found.runs} == set(ran), "every run is told of"


def test_nothing_is_compared_with_a_run_that_fails(monkeypatch):
    found, ran = after(monkeypatch, 4e-4, lambda rate: None if rate > 3e-4 else rate)
    assert 0.1 not in ran and found.suggestion < 4e-4


def test_a_run_that_fails_there_changes_nothing(monkeypatch):
    found, _ = after(monkeypatch, 4e-4, lambda rate: None if rate > 0.05 else abs(math.log10(rate / 4e-4)))
    assert found.suggestion == 4e-4


def test_a_usual_choice_asks_for_no_further_run(monkeypatch):
    _, ran = after(monkeypatch, 0.02, lambda rate: abs(math.log10(rate / 0.02)))
    assert sorted(ran) == pytest.approx([0.02 / STRIDE, 0.02, 0.02 * STRIDE])
