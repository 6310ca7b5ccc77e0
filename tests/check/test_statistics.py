"""Correlations, ratios, quantiles and bootstrap intervals by plain computation."""

from __future__ import annotations

import math

import numpy as np
import torch

from tiny_models import normal
from vogn.check.statistics import Estimate, bootstrap, median_ratio, pearson, weighted_quantiles


def test_pearson_is_numpys_for_every_batch():
    a, b = normal(4, 9, 2), normal(4, 9, 2, seed=1)
    found = pearson(a, b)
    for k in range(4):
        assert math.isclose(float(found[k]), np.corrcoef(a[k].flatten(), b[k].flatten())[0, 1], rel_tol=1e-12)
    assert torch.isnan(pearson(torch.ones(9, 2), b[0])).all()


def test_the_median_ratio_leaves_out_zeros_of_the_reference():
    a, b = torch.tensor([[1.0], [6.0], [5.0], [3.0]]), torch.tensor([[1.0], [2.0], [0.0], [1.5]])
    assert float(median_ratio(a, b)) == 2.0


def test_weighted_quantiles_walk_up_the_weights():
    values = torch.tensor([[3.0, 0.0], [1.0, 5.0], [2.0, 4.0]])
    weights = torch.tensor([0.2, 0.5, 0.3])
    found = weighted_quantiles(values, weights, [0.1, 0.6, 0.95])
    assert found.tolist() == [[1.0, 0.0], [2.0, 5.0], [3.0, 5.0]]


def test_the_bootstrap_interval_of_a_mean_is_the_normal_one():
    values = normal(400, 1)
    found = bootstrap(lambda part: part.mean((-2, -1)), values)
    half = 1.96 * float(values.std()) / 20
    assert math.isclose(found.value, float(values.mean()))
    assert abs(found.high - found.value - half) < 0.15 * half and abs(found.value - found.low - half) < 0.15 * half
    assert str(Estimate(1.0, 0.5, 2.0)) == "1 [0.5, 2]"
    undefined = bootstrap(lambda part: part.mean((-2, -1)) * torch.nan, values)
    assert all(math.isnan(number) for number in undefined)
