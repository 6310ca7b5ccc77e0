"""The counter-based generator against its authors' published answers, and the normal numbers against their law."""

import math

import pytest
import torch

from vogn.kernels import philox

ANSWERS = {  # kat_vectors of the Random123 library, philox4x32 with 10 rounds: counter, key, words
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "digits of pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


@pytest.mark.parametrize("counter, key, words", ANSWERS.values(), ids=ANSWERS.keys())
def test_philox_gives_the_published_words(counter, key, words):
    found = philox.philox(tuple(torch.tensor([c]) for c in counter), key)
    assert tuple(int(word) for word in found) == words


def test_philox_equals_a_loop_over_python_integers():
    counters, key = torch.tensor([3, 1 << 31, 0xFFFFFFFF]), (123456789, 0xDEADBEEF)
    found = philox.philox((counters, counters ^ 5, counters * 0, counters * 0 + 9), key, rounds=4)
    for n, counter in enumerate(counters.tolist()):
        c, k = [counter, counter ^ 5, 0, 9], list(key)
        for _ in range(4):
            left, right = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [right >> 32 ^ c[1] ^ k[0], right % 2**32, left >> 32 ^ c[3] ^ k[1], left % 2**32]
            k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
        assert [int(word[n]) for word in found] == c


def test_normal_is_a_function_of_seed_and_counter():
    whole = philox.normal(100, seed=7, offset=50)
    assert torch.equal(whole[30:], philox.normal(70, seed=7, offset=80))
    assert not torch.equal(whole, philox.normal(100, seed=8, offset=50))
    before = torch.random.get_rng_state()
    philox.normal(5, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("offset", [2**31 - 3, 2**32 - 3, 2**40])
def test_counters_beyond_32_bits_go_on(offset):
    whole = philox.normal(6, seed=7, offset=offset)
    assert whole.unique().numel() == 6
    assert torch.equal(whole[3:], philox.normal(3, seed=7, offset=offset + 3))


def test_the_high_word_of_a_counter_counts():
    assert not torch.equal(philox.normal(6, seed=7, offset=2**40), philox.normal(6, seed=7))


def test_every_bit_of_the_seed_counts():
    draws = [philox.normal(4, seed=1 << bit) for bit in range(63)]
    assert len({tuple(draw.tolist()) for draw in draws}) == 63


def test_normal_numbers_have_the_moments_of_the_normal_law():
    """Means of z, z^2, z^3, z^4 and of neighbours' products, each within 4 standard errors of 0, 1, 0, 3 and 0."""
    z = philox.normal(200_000, seed=1).double()
    expected = {1: (0.0, 1.0), 2: (1.0, 2.0), 3: (0.0, 15.0), 4: (3.0, 96.0)}
    for power, (mean, variance) in expected.items():
        assert abs(float((z**power).mean()) - mean) < 4.0 * math.sqrt(variance / z.numel())
    assert abs(float((z[1:] * z[:-1]).mean())) < 4.0 / math.sqrt(z.numel())
    assert z.abs().max() < 5.7


def test_no_numbers():
    assert philox.normal(0, seed=0).shape == (0,)
