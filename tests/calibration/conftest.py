"""Predictions with a known error."""

import pytest
import torch


def _drawn(count, classes, seed, scale):
    """Logits and labels drawn from ``softmax(logits)``, float64."""
    source = torch.Generator().manual_seed(seed)
    z = scale * torch.randn(count, classes, generator=source, dtype=torch.float64)
    return z, torch.multinomial(z.softmax(-1), 1, generator=source).squeeze(-1)


@pytest.fixture
def drawn():
    """The function that makes them."""
    return _drawn


@pytest.fixture
def calibrated():
    """``(4000, 4)`` logits and labels from them."""
    return _drawn(4000, 4, seed=0, scale=1.5)
