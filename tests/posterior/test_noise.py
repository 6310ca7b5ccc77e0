"""The numbers that draws of a Gaussian posterior are made of."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from vogn.linalg.layout import MatrixLayout
from vogn.linalg.quasi_random import sobol_normal
from vogn.posterior import GaussianPosterior, PosteriorBlock
from vogn.posterior.noise import NOISES
from vogn.structures import Diagonal


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("start, n", [(0, 1), (1, 1), (1, 4), (2, 2), (3, 5)])
def test_draw_k_does_not_depend_on_the_others(case, noise, start, n):
    whole = case.posterior.sample(8, seed=7, noise=noise)
    part = case.posterior.sample(n, seed=7, start=start, noise=noise)
    for name in case.means:
        # a product of other batch size may round differently in the last bit
        assert_close(part[name], whole[name][start : start + n], rtol=1e-14, atol=1e-15)


def test_antithetic_draws_are_the_independent_ones_and_their_mirror_images(case):
    pairs, own = case.posterior.sample(6, seed=2, noise="antithetic"), case.posterior.sample(3, seed=2)
    for name, mean in case.means.items():
        assert_close(pairs[name][::2], own[name])
        assert_close(pairs[name][1::2], 2 * mean - own[name])


def test_sobol_draws_are_the_root_of_the_covariance_times_one_sequence(case):
    """Over all blocks: 24 numbers a point."""
    found = case.vector(case.posterior.sample(16, seed=2, noise="sobol")) - case.vector(case.means)
    points = sobol_normal(16, 24, seed=2, start=0)
    noise = {"fc": points[:, :12].reshape(16, 3, 4), "norm": points[:, 12:].reshape(16, 6, 2, 1)}
    assert_close(found, case.vector(case.posterior._from_noise(noise, 16)) - case.vector(case.means))


@pytest.mark.parametrize("noise", NOISES)
def test_a_point_mass_has_its_mean_only(noise):
    point = GaussianPosterior([], {"weight": torch.ones(2)})
    assert point.sample(4, noise=noise)["weight"].equal(torch.ones(4, 2))


def test_too_many_parameters_for_sobol_are_refused_with_the_remedy():
    layout = MatrixLayout(("weight",), ((1, 21202),), (1, 21202))
    state = Diagonal().init(layout.block_shape, initial=1.0, dtype=torch.float32, device="cpu")
    block = PosteriorBlock("weight", layout, Diagonal(), state, shift=0.0, ess=1.0)
    posterior = GaussianPosterior([block], {"weight": torch.zeros(1, 21202)})
    with pytest.raises(ValueError, match="at most 21201 sampled parameters, this posterior has 21202; use noise='anti"):
        posterior.sample(2, noise="sobol")


def test_an_unknown_noise_is_refused(case):
    with pytest.raises(ValueError, match="unknown noise 'halton'; known: independent, antithetic, sobol"):
        case.posterior.sample(2, noise="halton")
