"""Rows of convolutions without written patches: every product is that of the patches written out."""

import pytest
import torch
import torch.nn.functional as F

from tiny_models import normal
from vogn.kernels import reference
from vogn.linalg import factors
from vogn.linalg.patch_rows import PatchRows
from vogn.linalg.patches import Patches
from vogn.linalg.rows import Rows, Total

GEOMETRIES = {
    "line": {"space": (9,), "kernel": (3,)},
    "plane": {"space": (6, 5), "kernel": (3, 2)},
    "volume": {"space": (4, 3, 4), "kernel": (2, 1, 3)},
    "strides that leave a rest": {"space": (8, 7), "kernel": (3, 3), "stride": (2, 3)},
    "dilation": {"space": (7, 7), "kernel": (3, 2), "dilation": (2, 3)},
    "groups": {"space": (6, 6), "kernel": (3, 3), "groups": 2},
    "depthwise": {"space": (6, 6), "kernel": (3, 3), "groups": 4},
    "point": {"space": (5, 5), "kernel": (1, 1)},
    "one position": {"space": (3, 3), "kernel": (3, 3)},
}


def build(name, *, bias=True, d_out=2, columns=2, dtype=torch.float64, count=5):
    geometry = GEOMETRIES[name]
    dims, groups = len(geometry["space"]), geometry.get("groups", 1)
    patches = Patches(
        normal(count, 4, *geometry["space"], seed=1, dtype=dtype),
        geometry["kernel"],
        geometry.get("stride", (1,) * dims),
        geometry.get("dilation", (1,) * dims),
        groups,
        bias,
    )
    lead = (groups,) if groups > 1 else ()
    positions = int(torch.tensor(patches.out).prod())
    return PatchRows(patches, normal(*lead, columns, count, positions, d_out, seed=2, dtype=dtype))


@pytest.mark.parametrize("name", GEOMETRIES)
def test_the_patches_are_what_a_convolution_sees(name):
    rows, geometry = build(name, bias=True), GEOMETRIES[name]
    kernel = normal(2 * rows.patches.groups, 4 // rows.patches.groups, *geometry["kernel"], seed=3)
    bias = normal(len(kernel), seed=4)
    convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(geometry["space"])]
    options = {key: geometry[key] for key in ("stride", "dilation", "groups") if key in geometry}
    expected = convolve(rows.patches.x, kernel, bias, **options).flatten(2)  # (N, c_out, T)
    v = torch.cat([kernel.flatten(1), bias.unsqueeze(1)], 1).view(rows.shape)
    for found in ((rows.a @ v.mT.unsqueeze(-3)), rows.patches.product(v)):
        found = found if rows.patches.lead else found.unsqueeze(0)
        torch.testing.assert_close(found.permute(1, 0, 3, 2).flatten(1, 2), expected)


@pytest.mark.parametrize("convolves", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_product_is_that_of_written_patches(monkeypatch, name, bias, convolves):
    monkeypatch.setattr(PatchRows, "_convolves", convolves)
    rows = build(name, bias=bias)
    plain = Rows(rows.a, rows.g)
    v, c = normal(*rows.shape, seed=5), normal(rows.columns, rows.count, seed=6)
    assert (rows.count, rows.columns, rows.shape) == (plain.count, plain.columns, plain.shape)
    torch.testing.assert_close(rows.dense(), plain.dense())
    torch.testing.assert_close(rows.squares(), plain.squares())
    torch.testing.assert_close(rows.gram(), plain.gram())
    torch.testing.assert_close(rows.matvec(v), plain.matvec(v))
    torch.testing.assert_close(rows.rmatvec(c), plain.rmatvec(c))
    for found, expected in zip(factors.contractions(rows), factors.contractions(plain), strict=True):
        torch.testing.assert_close(found, expected)
    for sharing in ("expand", "reduce"):
        for diagonal in (False, True):
            found = factors.input_factor(rows, sharing, diagonal)
            torch.testing.assert_close(found, factors.input_factor(plain, sharing, diagonal))


@pytest.mark.parametrize("name", ["plane", "groups"])
def test_pieces_are_the_whole(monkeypatch, name):
    rows = build(name)
    squares, factor = rows.squares(), factors.input_factor(rows, "expand")
    for elements in (1, 3 * rows.a[..., 0, :, :].numel(), 2 * rows.columns * squares.numel()):
        monkeypatch.setattr(reference, "CHUNK_ELEMENTS", elements)
        torch.testing.assert_close(rows.squares(), squares)
        torch.testing.assert_close(torch.cat(list(rows.pieces()), -3).movedim((-4, -3), (0, 1)), rows.dense())
        torch.testing.assert_close(factors.input_factor(rows, "expand"), factor)


@pytest.mark.parametrize("convolves", [True, False])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_squares_leave_the_sum_of_the_rows(monkeypatch, name, convolves):
    monkeypatch.setattr(PatchRows, "_convolves", convolves)
    rows = build(name)
    expected = rows.rmatvec(torch.ones(rows.columns, rows.count, dtype=torch.float64))
    for elements in (1, 2 * rows.columns * rows.squares().numel(), 10**6):
        monkeypatch.setattr(reference, "CHUNK_ELEMENTS", elements)
        total = Total()
        torch.testing.assert_close(rows.changed(total=total).squares(), rows.squares())
        if total.value is None:  # one position: no row is formed
            assert rows.g.shape[-2] == 1 and not convolves
            continue
        torch.testing.assert_close(total.value, expected)


@pytest.mark.parametrize("d_out", [2, 40])
def test_single_precision_is_near_double(d_out):
    """On either side of the choice between a convolution and a product with the patches."""
    rows, exact = (build("plane", d_out=d_out, dtype=dtype) for dtype in (torch.float32, torch.float64))
    assert rows._convolves == (d_out == 2)
    torch.testing.assert_close(rows.squares().double(), exact.squares(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rows.dense().double(), exact.dense(), rtol=1e-4, atol=1e-5)


def test_patches_are_written_for_those_who_read_them_alone():
    rows = build("plane")
    rows.squares(), rows.dense(), rows.matvec(normal(*rows.shape)), rows.rmatvec(normal(rows.columns, rows.count))
    factors.input_factor(rows, "expand")
    assert "a" not in vars(rows)
    assert rows.a is rows.a


def test_other_fields_leave_the_patches_alone():
    rows = build("groups")
    mask = torch.ones(rows.g.shape[-3:-1], dtype=torch.bool)
    masked = rows.changed(mask=mask)
    assert isinstance(masked, PatchRows) and masked.patches is rows.patches and masked.mask is mask
    strided = rows.changed(a=rows.a[..., ::2, :], g=rows.g[..., ::2, :])
    assert not isinstance(strided, PatchRows)
    torch.testing.assert_close(strided.dense(), Rows(rows.a[..., ::2, :], rows.g[..., ::2, :]).dense())
    first = rows.first(3, 2.0)
    torch.testing.assert_close(first.dense(), 2.0 * rows.dense()[:, :3])
