"""Draws are pure functions of their coordinates."""

import itertools

import pytest
import torch

from vogn.linalg.noise import generator, normal

HERE = {"seed": 0, "stream": "weights", "step": 5, "sample": 1, "name": "net.0", "rank": 2}
ELSEWHERE = [
    {"seed": 1},
    {"stream": "labels"},
    {"step": 6},
    {"step": 51, "sample": 1},
    {"sample": 2},
    {"name": "net.1"},
    {"name": ""},
    {"rank": 0},
]


def test_the_same_coordinates_give_the_same_draw():
    first = normal((4, 3), **HERE)
    normal((4, 3), **HERE | {"step": 6})  # an unrelated draw in between
    assert torch.equal(normal((4, 3), **HERE), first)


@pytest.mark.parametrize("change", ELSEWHERE, ids=str)
def test_every_coordinate_changes_the_draw(change):
    assert not torch.equal(normal((8,), **HERE | change), normal((8,), **HERE))


def test_neighbouring_coordinates_have_different_seeds():
    seeds = {
        generator(seed=seed, stream=stream, step=step, sample=sample).initial_seed()
        for seed, stream, step, sample in itertools.product(range(3), ("weights", "labels"), range(30), range(5))
    }
    assert len(seeds) == 3 * 2 * 30 * 5


def test_the_global_random_state_is_untouched():
    before = torch.random.get_rng_state()
    normal((4, 3), **HERE)
    generator(**HERE)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_global_seed_has_no_influence():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = normal((8,), **HERE)
        torch.manual_seed(2)
        assert torch.equal(normal((8,), **HERE), first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_shape_and_type(shape, dtype):
    draw = normal(shape, **HERE, dtype=dtype)
    assert draw.shape == shape
    assert draw.dtype == dtype


def test_moments_within_a_draw_and_across_draws():
    # z-tests with a fixed seed: |mean| < 4 / sqrt(n); Var(x^2) = 2, Var(x^4) = 96, Var(x y) = 1
    n = 20_000
    within = normal((n,), **HERE, dtype=torch.float64)
    across = torch.stack([normal((20,), **HERE | {"step": step}, dtype=torch.float64) for step in range(n // 20)])
    for x in (within, across.flatten()):
        assert abs(x.mean()) < 4 * n**-0.5
        assert abs(x.square().mean() - 1) < 4 * (2 / n) ** 0.5
        assert abs(x.pow(4).mean() - 3) < 4 * (96 / n) ** 0.5
    assert abs((across[1:] * across[:-1]).mean()) < 4 * n**-0.5


@pytest.mark.parametrize("change", [c for c in ELSEWHERE if len(c) == 1], ids=str)
def test_streams_are_uncorrelated(change):
    n = 20_000
    x, y = normal((n,), **HERE, dtype=torch.float64), normal((n,), **HERE | change, dtype=torch.float64)
    assert abs((x * y).mean()) < 4 * n**-0.5
