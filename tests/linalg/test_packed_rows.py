"""Packed rows are read back as the same rows, from one batch or several."""

import math

import pytest
import torch

from tiny_models import normal
from vogn.linalg.packed_rows import LEAVES, pack, unpack
from vogn.linalg.patch_rows import PatchRows
from vogn.linalg.patches import Patches
from vogn.linalg.rows import GradientRow, IndexedRows, JoinedRows, Rows


def linear(examples=4, columns=2, positions=1, shape=(20, 16), seed=1, dtype=torch.float64):
    *lead, d_out, d_in = shape
    a = normal(*lead, examples, positions, d_in, seed=seed, dtype=dtype)
    return Rows(a, normal(*lead, columns, examples, positions, d_out, seed=seed + 1, dtype=dtype))


def convolution(examples=4, columns=2, space=(3, 3), groups=1, seed=1, dtype=torch.float64):
    x = normal(examples, 4, *space, seed=seed, dtype=dtype)
    found = Patches(x, (2, 2), (1, 1), (1, 1), groups, True)
    lead = (groups,) if groups > 1 else ()
    return PatchRows(found, normal(*lead, columns, examples, math.prod(found.out), 20, seed=seed + 1, dtype=dtype))


def look_up(examples=4, columns=2, positions=3, seed=1, dtype=torch.float64):
    index = torch.randint(0, 50, (examples, positions), generator=torch.Generator().manual_seed(seed))
    return IndexedRows(index, normal(columns, examples, positions, 6, seed=seed + 1, dtype=dtype), 50)


def batch(**options):
    """Layers of every kind, the last of which are not worth keeping as pairs."""
    members = (
        linear(**options),
        linear(**options | {"shape": (2, 9, 8), "seed": 3}),
        convolution(**options),
        convolution(**options | {"groups": 2, "seed": 5}),
        look_up(**options),
        linear(**options | {"shape": (2, 3), "seed": 7}),
        linear(**options | {"shape": (5, 1), "seed": 9}),
    )
    return JoinedRows(members)


def joint(packs):
    keys = {key: None for found in packs for key in found}
    return {key: torch.cat([found[key] for found in packs if key in found]) for key in keys}


def flat(layers):
    """``(K N, D)`` of layers."""
    return torch.cat([layer.dense().flatten(2).flatten(0, 1) for layer in layers], 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_packed_is_read_back(dtype):
    rows = batch(dtype=dtype)
    found = pack(rows)
    assert set(found) == {"a", "g", "layout"} < set(LEAVES) and {leaf.dtype for leaf in found.values()} == {dtype}
    layers = unpack(found)
    assert [type(layer) for layer in layers] == [Rows, Rows, PatchRows, PatchRows, IndexedRows, Rows, Rows]
    assert torch.equal(flat(layers), flat(rows.members)), "powers of two change no digit"
    written, half = rows.columns * rows.count * rows.shape[0], 0.55
    assert found["a"].numel() + found["g"].numel() < half * written


def test_rows_that_pairs_would_not_shorten_are_one_leaf():
    for rows in (linear(shape=(2, 3)), JoinedRows((linear(shape=(2, 3)), linear(shape=(1, 4), seed=3)))):
        found = pack(rows)
        assert set(found) == {"J"}
        assert torch.equal(found["J"], rows.dense().flatten(2).flatten(0, 1))
        (layer,) = unpack(found)
        assert torch.equal(flat([layer]), found["J"])


def test_a_gradient_is_a_row():
    gradient = normal(3, 4)
    found = pack(GradientRow(gradient))
    assert torch.equal(found["J"], gradient.view(1, 12))
    found = pack(JoinedRows((linear(examples=1, columns=1), GradientRow(gradient))))
    assert torch.equal(flat(unpack(found))[:, 320:], gradient.view(1, 12))


@pytest.mark.parametrize("second", ["same", "longer", "other columns", "written out", "another size"])
def test_several_batches_are_read_as_one(second):
    """Rows may come in another order, so their sum of squares is compared, and that layers agree about the order."""
    first = JoinedRows((linear(positions=2), look_up(positions=2), convolution(), linear(shape=(2, 2), seed=5)))
    options = {"examples": 3, "columns": 5 if second == "other columns" else 2, "seed": 11}
    positions = {"longer": 3, "written out": 40}.get(second, 2)
    space = (4, 3) if second == "another size" else (3, 3)
    members = (
        linear(positions=positions, **options),
        look_up(positions=positions, **options),
        convolution(space=space, **options),
        linear(shape=(2, 2), **options | {"seed": 15}),
    )
    packs = [pack(first), pack(JoinedRows(members))]
    layers = unpack(joint(packs))
    expected = torch.cat([flat(first.members), flat(members)])
    found = flat(layers)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.T @ found, expected.T @ expected)
    implicit = {"same": 3, "longer": 3, "other columns": 0, "written out": 1, "another size": 2}[second]
    assert sum(layer.shape[-1] > 1 for layer in layers) == implicit


def test_a_batch_that_was_one_leaf_joins_one_that_was_not():
    long = JoinedRows((linear(positions=30), linear(seed=3, positions=30)))
    short = JoinedRows((linear(), linear(seed=3)))
    packs = [pack(long), pack(short)]
    assert set(packs[0]) == {"J"} and "g" in packs[1]
    expected = torch.cat([flat(long.members), flat(short.members)])
    for order in (packs, packs[::-1]):
        found = flat(unpack(joint(order)))
        torch.testing.assert_close(found.T @ found, expected.T @ expected)


def test_a_table_with_more_entries_than_single_precision_can_count_is_not_packed_as_indices(monkeypatch):
    from vogn.linalg import packed_rows

    rows = look_up(dtype=torch.float32)
    assert "g" in pack(rows)
    huge, written = IndexedRows(rows.index, rows.g, 1 << 25), rows.dense()
    monkeypatch.setattr(IndexedRows, "dense", lambda self: written)
    assert set(packed_rows.pack(huge)) == {"J"}


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e-18, 1e18, 1e30, 0.0])
def test_inner_products_of_pairs_stay_in_range_where_those_of_rows_do(scale):
    """Inputs of 1e30 against output gradients of 1e-30: their own squares leave single precision."""
    rows = linear(dtype=torch.float32)
    g = rows.g / scale if scale else rows.g
    extreme = Rows(rows.a * scale, g.clamp(-1e38, 1e38))
    (layer,) = unpack(pack(extreme))
    expected = flat([extreme]).double()
    torch.testing.assert_close(layer.gram().double(), expected @ expected.T, rtol=1e-5, atol=1e-5)
    assert scale == 0.0 or float(expected.abs().max()) > 0.01
