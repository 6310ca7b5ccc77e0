"""Draws are pure functions of their coordinates."""

import itertools
import threading

import pytest
import torch

from vogn.kernels import native
from vogn.linalg import noise
from vogn.linalg.noise import fill_normals, generator, key, normal
from vogn.optim.functional import weight_noise

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


@pytest.fixture(params=["as it is", "without a compiler"])
def any_source(request, monkeypatch):
    monkeypatch.delenv("VOGN_KERNELS", raising=False)
    if request.param != "as it is":
        monkeypatch.setattr(native, "why_not", lambda: request.param)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_block_draws_the_same_alone_and_with_others(any_source, dtype):
    shapes = {"first": (5, 7), "empty": (0, 3), "one": (1,), "long": (3, 1001), "scalar": ()}
    here = {"seed": 0, "step": 5, "dtype": dtype, "rank": 2, "device": torch.device("cpu")}
    together = weight_noise(shapes, sample=1, antithetic=False, **here)
    for (name, shape), found in zip(shapes.items(), together, strict=True):
        assert torch.equal(found, normal(shape, stream="weights", sample=1, name=name, **here))
    assert not torch.equal(together[-1], together[2][0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("size", [1, 15, 16, 1000])
def test_without_kernels_the_numbers_are_those_of_a_fresh_generator(monkeypatch, dtype, size):
    monkeypatch.setenv("VOGN_KERNELS", "reference")
    normal((7,), **HERE | {"step": 9}, dtype=dtype)  # an odd number of draws before
    expected = torch.randn(size, generator=generator(**HERE), dtype=dtype)
    assert torch.equal(normal((size,), **HERE, dtype=dtype), expected)


def test_threads_draw_with_generators_of_their_own():
    """Each thread draws its streams again and again, all at once; a shared generator would mix them."""
    expected = [normal((3000,), **HERE | {"step": step}, dtype=torch.float64) for step in range(4)]
    found, start = [[] for _ in expected], threading.Barrier(len(expected))

    def draw(step):
        start.wait()
        found[step] += [normal((3000,), **HERE | {"step": step}, dtype=torch.float64) for _ in range(50)]

    threads = [threading.Thread(target=draw, args=(step,)) for step in range(len(expected))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for draws, own in zip(found, expected, strict=True):
        assert len(draws) == 50 and all(torch.equal(draw, own) for draw in draws)


@pytest.mark.parametrize("sizes", [[3, 4], [3, 6], []], ids=str)
def test_parts_that_do_not_fill_the_memory_are_refused(sizes):
    with pytest.raises(ValueError, match=f"parts of {sum(sizes)} numbers do not fill a tensor of 8"):
        fill_normals(torch.empty(8), sizes, [key(0, "weights", 0, 0, "", k) for k in range(len(sizes))])


def test_the_source_of_noise_is_a_number(monkeypatch):
    monkeypatch.delenv("VOGN_KERNELS", raising=False)
    cpu = [torch.device("cpu")]
    for why_not, expected in (("", 1), ("there is no compiler", 0)):
        monkeypatch.setattr(native, "why_not", lambda why_not=why_not: why_not)
        assert noise.source(cpu) == expected
        with monkeypatch.context() as patch:
            patch.setattr(noise, "fitting", lambda op, room: native.fill_normals)
            assert noise.source(cpu) == expected + 2
