"""A classifier and a regression network, with posteriors that are made without training."""

from __future__ import annotations

import pytest
import torch

import vogn
from vogn import report
from vogn.likelihoods import Categorical, Gaussian


@pytest.fixture(scope="session")
def classifier():
    """Predictors, images in [0, 1], labels."""
    source = torch.Generator().manual_seed(0)
    x = torch.rand(120, 1, 8, 8, generator=source)
    y = (x.mean((1, 2, 3)) * 30 - 13.5).clamp(0, 2).round().long()
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    adam = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(60):
        adam.zero_grad()
        torch.nn.functional.cross_entropy(net(x), y).backward()
        adam.step()
    posterior = vogn.laplace(net, Categorical(), [(x, y)])
    predictors = {
        "8 samples": lambda x: vogn.predict(net, posterior, x, samples=8),
        "mean <script>alert(1)</script> & $a$ $": lambda x: vogn.predict(net, posterior, x, method="mean"),
    }
    return predictors, x, y


@pytest.fixture(scope="session")
def regression():
    """Predictors, inputs, targets."""
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 50).unsqueeze(1)
    y = x.sin() + 0.1 * torch.randn(50, 1)
    net = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    posterior = vogn.laplace(net, Gaussian(0.1), [(x, y)])
    predictors = {
        "linearised": lambda x: vogn.predict(net, posterior, x, method="linearized"),
        "samples": lambda x: vogn.predict(net, posterior, x, samples=4),
    }
    return predictors, x, y


@pytest.fixture(scope="session")
def measured(classifier):
    """Everything that there is to measure about the classifier."""
    predictors, x, y = classifier
    outside = {"noise <b>&": torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.2}
    shift = report.Shift(corruptions=("contrast", "gaussian_noise"), examples=60)
    return report.measure(predictors, x, y, outside=outside, shift=shift, bootstrap=50)


@pytest.fixture(scope="session")
def page(measured):
    """The page with everything on it, and texts that would be elements if they were not escaped."""
    facts = {"run": "runs/<img src=x onerror=alert(1)>", "data": 'npz:"a&b".npz'}
    rows = [{"epoch": k, "train_loss": 1 / k, "train_accuracy": 0.1 * k} for k in (1, 2, 3)]
    return report.html(
        measured, title="A </title> <b>run</b>", facts=facts, histories={"AdamW": rows}, details="{<pre>}"
    )
