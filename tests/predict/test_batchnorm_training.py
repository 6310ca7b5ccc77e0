"""Training tracks batch norm statistics under the sampled weights, once per forward pass of the user."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import vogn
from vogn.optim import METHODS


class Network(nn.Module):
    """Batch norm behind a linear layer, and a bare scale whose curvature takes a pass of its own."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.scale * torch.tanh(self.norm(self.first(x))))


@pytest.mark.parametrize("variational", [True, False], ids=["variational", "deterministic"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.filterwarnings("ignore:no layer rule")
def test_running_statistics_average_those_of_the_weights_in_use(method, variational):
    model, likelihood = Network().double(), vogn.likelihoods.Categorical()
    source = torch.Generator().manual_seed(1)
    x, y = torch.randn(8, 3, generator=source, dtype=torch.float64), torch.arange(8) % 2
    opt = METHODS[method].constructor(model, lr=0.05, ess=100.0, weight_decay=0.1, variational=variational)
    mean, variance = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for _ in range(3):
        with opt.sampled_params():
            hidden = (x @ model.first.weight.T + model.first.bias).detach()
            likelihood(model(x), y).backward()
        opt.step()
        opt.zero_grad()
        mean, variance = 0.9 * mean + 0.1 * hidden.mean(0), 0.9 * variance + 0.1 * hidden.var(0)
    assert model.norm.num_batches_tracked == 3
    assert_close(model.norm.running_mean, mean, rtol=1e-12, atol=1e-12)
    assert_close(model.norm.running_var, variance, rtol=1e-12, atol=1e-12)
