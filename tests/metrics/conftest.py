"""Predictions that the metrics are tried on."""

import pytest
import torch


@pytest.fixture
def predictions():
    """``(200, 4)`` probabilities that are far too sure, and labels; float64, no two probabilities equal."""
    source = torch.Generator().manual_seed(0)
    p = (2 * torch.randn(200, 4, generator=source, dtype=torch.float64)).softmax(-1)
    return p, torch.randint(4, (200,), generator=source)


@pytest.fixture
def regression():
    """Means, variances and targets ``(150, 2)``, with noise 1.7 times what the variances say; float64."""
    source = torch.Generator().manual_seed(1)
    mean, noise = torch.randn(2, 150, 2, generator=source, dtype=torch.float64)
    variance = torch.rand(150, 2, generator=source, dtype=torch.float64) + 0.1
    return mean, variance, mean + 1.7 * variance.sqrt() * noise


@pytest.fixture
def mixture():
    """Outputs of 5 weight samples ``(5, 40, 2)``, a noise variance and targets ``(40, 2)``; float64."""
    source = torch.Generator().manual_seed(2)
    components = torch.randn(5, 40, 2, generator=source, dtype=torch.float64)
    return components, torch.tensor(0.3, dtype=torch.float64), torch.randn(40, 2, generator=source, dtype=torch.float64)
