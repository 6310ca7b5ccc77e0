"""The second moment of patches from shifts is the product of the written patches."""

import itertools
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tiny_models import normal
from vogn.layers import find_rule
from vogn.linalg import patch_rows, self_correlation
from vogn.linalg.factors import input_factor
from vogn.linalg.patches import Patches
from vogn.linalg.self_correlation import pays, ranges_of, second_moment_of_patches


def by_hand(patches):
    """One patch after the other."""
    moment = torch.zeros(patches.groups, patches.d_in, patches.d_in, dtype=patches.x.dtype)
    for n in range(patches.count):
        for t in itertools.product(*map(range, patches.out)):
            places = [
                slice(start, start + d * (k - 1) + 1, d)
                for start, k, d in zip(t, patches.kernel, patches.dilation, strict=True)
            ]
            for group, x in enumerate(patches.x[n].unflatten(0, (patches.groups, -1))):
                patch = x[(slice(None), *places)].flatten()
                row = torch.cat([patch, patch.new_ones(int(patches.bias))])
                moment[group] += torch.outer(row, row)
    return moment if patches.groups > 1 else moment[0]


def draw(seed, dims):
    """A geometry with positions that every tap reaches."""
    chance = random.Random(100 * seed + dims)
    kernel = tuple(chance.randint(1, 4 if dims < 3 else 3) for _ in range(dims))
    dilation = tuple(chance.randint(1, 2) for _ in range(dims))
    groups, bias = chance.choice([1, 1, 2, 3]), chance.random() < 0.5
    sizes = [2 * d * (k - 1) + chance.randint(1, 3) for k, d in zip(kernel, dilation, strict=True)]
    zeros = tuple((chance.randint(0, 3), chance.randint(0, 3)) for _ in sizes)
    zeros = tuple((a, b) if a + b < size else (0, 0) for size, (a, b) in zip(sizes, zeros, strict=True))
    inner = [size - a - b for size, (a, b) in zip(sizes, zeros, strict=True)]
    x = F.pad(normal(2, 2 * groups, *inner, seed=seed), [n for pair in reversed(zeros) for n in pair])
    return Patches(x, kernel, (1,) * dims, dilation, groups, bias, zeros if chance.random() < 0.7 else ())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_every_geometry(seed, dims):
    patches = draw(seed, dims)
    assert len(ranges_of(patches)) == dims
    found = second_moment_of_patches(patches)
    torch.testing.assert_close(found, by_hand(patches), rtol=1e-11, atol=1e-11)
    assert torch.equal(found, found.mT)


def test_positions_known_to_be_zero_are_left_out():
    x = F.pad(normal(2, 3, 6, 5), (1, 1, 1, 1))
    known, unknown = (
        Patches(x, (3, 3), (1, 1), (1, 1), 1, True, zeros=zeros) for zeros in (((1, 1), (1, 1)), ())
    )
    assert ranges_of(known) == [[(1, 2), (2, 6), (6, 7)], [(1, 2), (2, 5), (5, 6)]]
    assert ranges_of(unknown)[0] == [(0, 1), (1, 2), (2, 6), (6, 7), (7, 8)]
    torch.testing.assert_close(second_moment_of_patches(known), second_moment_of_patches(unknown))


def test_a_map_without_positions_that_every_tap_reaches_has_no_ranges():
    assert ranges_of(Patches(normal(2, 3, 4, 9), (3, 3), (1, 1), (1, 1), 1, False)) == []


def test_pieces_are_the_whole_and_as_near_to_it_as_a_product(monkeypatch):
    x = F.pad(torch.rand(40, 3, 20, 20), (1, 1, 1, 1))
    patches = Patches(x, (3, 3), (1, 1), (1, 1), 1, False, ((1, 1), (1, 1)))
    expected = by_hand(replace(patches, x=x.double()))
    for piece in (1, 18 * 18 * 7, 10**9):
        monkeypatch.setattr(self_correlation, "PIECE", piece)
        found = second_moment_of_patches(patches).double()
        assert ((found - expected).abs().max() / expected.max()) < (1e-5 if piece == 10**9 else 2e-6)


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect"])
@pytest.mark.parametrize("padding", [0, 1, "same"])
def test_a_large_layer_takes_them(monkeypatch, padding, padding_mode):
    torch.manual_seed(0)
    module = nn.Conv2d(8, 4, 3, padding=padding, padding_mode=padding_mode)
    x = torch.randn(16, 8, 12, 12)
    rows = find_rule(module).rows(module, ("weight", "bias"), (x,), torch.randn(1, *module(x).shape))
    called = []
    monkeypatch.setattr(
        patch_rows, "second_moment_of_patches", lambda found: called.append(1) or second_moment_of_patches(found)
    )
    monkeypatch.setattr(self_correlation, "WORTH", 10**5)
    found = input_factor(rows, "expand")
    monkeypatch.setattr(self_correlation, "WORTH", 10**12)
    torch.testing.assert_close(found, input_factor(rows, "expand"), rtol=1e-4, atol=1e-2)
    assert called == [1]


def test_where_written_patches_are_better():
    def patches(x=None, kernel=(3, 3), stride=(1, 1)):
        x = torch.randn(64, 16, 32, 32) if x is None else x
        return Patches(x, kernel, stride, (1, 1), 1, False, ((1, 1), (1, 1)))

    large = patches()
    assert pays(large)
    for other in (
        patches(stride=(2, 2)),
        patches(kernel=(1, 1)),
        patches(torch.randn(2, 16, 32, 32)),
        patches(torch.randn(64, 16, 32, 32, dtype=torch.float64)),
        patches(torch.randn(64, 16, 4, 4)),
    ):
        assert not pays(other)
