"""Sobol points as normal numbers."""

import math

import pytest
import torch
from torch.quasirandom import SobolEngine

from vogn.linalg.quasi_random import sobol_normal


def test_every_point_is_a_function_of_seed_and_index():
    whole = sobol_normal(8, 5, seed=3, start=0)
    parts = [sobol_normal(n, 5, seed=3, start=start) for start, n in ((0, 1), (1, 4), (5, 3))]
    assert torch.cat(parts).equal(whole)
    assert not torch.isclose(sobol_normal(8, 5, seed=4, start=0), whole).any()


def test_the_global_random_state_is_left_alone():
    before = torch.get_rng_state()
    sobol_normal(2, 3, seed=0, start=1)
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("power", [1, 4, 6])
def test_a_power_of_two_points_has_one_in_every_cell_of_equal_probability(power):
    """Independent draws would leave a third of the cells empty."""
    n = 1 << power
    uniform = torch.special.ndtr(sobol_normal(n, 7, seed=1, start=0))
    assert (uniform * n).long().sort(0).values.equal(torch.arange(n).unsqueeze(1).expand(n, 7))


def test_every_point_alone_is_standard_normal_over_seeds():
    points = torch.cat([sobol_normal(1, 4, seed=seed, start=5) for seed in range(2000)])
    assert points.mean(0).abs().max() < 5 / math.sqrt(2000)
    assert (points.square().mean(0) - 1).abs().max() < 5 * math.sqrt(2 / 2000)


@pytest.mark.parametrize("end", [0.0, 1.0 - 2.0**-30])
def test_the_ends_of_the_sequence_are_finite(monkeypatch, end):
    monkeypatch.setattr(SobolEngine, "draw", lambda self, n, dtype: torch.full((n, self.dimension), end, dtype=dtype))
    found = sobol_normal(1, 2, seed=0, start=0)
    tail = 0.5 * math.erfc(float(found.abs().max()) / math.sqrt(2.0))
    assert tail == pytest.approx(2.0**-31, rel=1e-6)
    assert float(found.sign().sum()) == math.copysign(2.0, end - 0.5)
