"""The isotropic prior."""

from __future__ import annotations

import math

import pytest
import torch

from vogn.posterior import Prior


@pytest.mark.parametrize("precision", [0.0, -1.0, math.inf, math.nan])
def test_precision_must_be_positive_and_finite(precision):
    with pytest.raises(ValueError, match="prior precision"):
        Prior(precision=precision)


def test_a_number_fills_every_shape():
    means = Prior(0.5).mean_like({"w": torch.zeros(2, 3, dtype=torch.float64)})
    assert means["w"].equal(torch.full((2, 3), 0.5, dtype=torch.float64))


def test_tensors_are_looked_up_by_name():
    prior = Prior({"w": torch.arange(3)})
    assert prior.mean_like({"w": torch.zeros(3)})["w"].equal(torch.arange(3.0))
    with pytest.raises(ValueError, match="no mean for parameter 'v'"):
        prior.mean_like({"v": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"'w' has shape \(3,\)"):
        prior.mean_like({"w": torch.zeros(2)})
