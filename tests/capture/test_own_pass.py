"""Passes of our own through graphs with frozen, bare and compiled parts."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from vogn.likelihoods import Categorical
from vogn.optim import METHODS


class Shifted(nn.Module):
    """Two layers and a bare parameter between them."""

    def __init__(self):
        super().__init__()
        self.first, self.shift, self.last = nn.Linear(3, 4), nn.Parameter(torch.zeros(4)), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x) + self.shift))


def shifted():
    torch.manual_seed(0)
    return Shifted().double()


def build(method, model, **options):
    return METHODS[method].constructor(model, **({"lr": 0.05, "ess": 100.0, "weight_decay": 0.01} | options))


def step(opt, model, seed):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 3, generator=source, dtype=torch.float64)
    y = torch.randint(0, 3, (6,), generator=source)
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    opt.step()


@pytest.mark.filterwarnings("ignore:no layer rule")
@pytest.mark.parametrize("method", ["kfac", "ekfac", "von", "vogn"])
def test_a_bare_parameter_in_a_compiled_model_does_not_disturb_its_layers(method):
    """Its per-example pass goes through the compiled layers again, which must not count."""
    torch._dynamo.reset()
    model = shifted()
    twin = copy.deepcopy(model)
    opt, other = build(method, model), build(method, twin)
    compiled = torch.compile(twin, backend="aot_eager")
    for seed in range(3):
        step(opt, model, seed)
        step(other, compiled, seed)
    for one, two in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:no layer rule")
@pytest.mark.parametrize("variational", [True, False], ids=["variational", "deterministic"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("part", ["first", "shift", "last"])
def test_what_is_frozen_in_the_middle_of_a_run_stays_and_the_rest_goes_on(part, method, variational):
    model = shifted()
    opt = build(method, model, variational=variational)
    for seed in range(2):
        step(opt, model, seed)
    frozen = {name: p for name, p in model.named_parameters() if name.split(".")[0] == part}
    for parameter in frozen.values():
        parameter.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for seed in range(2, 4):
        step(opt, model, seed)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == before.keys() - frozen.keys()
