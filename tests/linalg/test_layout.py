"""Packing of parameters into block vectors."""

import json
import math

import pytest
import torch

from vogn.linalg.layout import JoinedLayout, MatrixLayout, StackLayout, columns, layout_from_dict, lines

LAYOUTS = {
    "linear": MatrixLayout(("w", "b"), ((3, 4), (3,)), (3, 4)),
    "weight only": MatrixLayout(("w",), ((3, 4),), (3, 4)),
    "bias only": MatrixLayout(("b",), ((3,),), (3, 0)),
    "convolution": MatrixLayout(("w", "b"), ((3, 2, 3, 3), (3,)), (3, 18)),
    "grouped convolution": MatrixLayout(("w", "b"), ((6, 2, 3), (6,)), (2, 3, 6)),
    "grouped bias only": MatrixLayout(("b",), ((6,),), (2, 3, 0)),
    "table": MatrixLayout(("w",), ((7, 3),), (3, 7), permute=(1, 0)),
    "three permuted dimensions": MatrixLayout(("w", "b"), ((2, 3, 4), (3,)), (3, 8), permute=(1, 2, 0)),
    "grouped transposed convolution": MatrixLayout(
        ("w", "b"), ((6, 2, 3), (4,)), (2, 2, 9), permute=(0, 2, 1, 3), view=(2, 3, 2, 3)
    ),
    "norm": StackLayout(("w", "b"), ((5,), (5,))),
    "norm over two dimensions": StackLayout(("w", "b"), ((2, 3), (2, 3))),
    "scalar": StackLayout(("p",), ((),)),
}
LAYOUTS["joined"] = JoinedLayout(
    (
        MatrixLayout(("a.w", "a.b"), ((3, 4), (3,)), (3, 4)),
        StackLayout(("n.w", "n.b"), ((5,), (5,))),
        MatrixLayout(("e.w",), ((7, 3),), (3, 7), permute=(1, 0)),
    )
)
LAYOUTS["joined twice"] = JoinedLayout((LAYOUTS["joined"], LAYOUTS["scalar"]))
every_layout = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())


def tensors(layout, batch):
    source = torch.Generator().manual_seed(0)
    return {
        name: torch.randn((*batch, *shape), generator=source, dtype=torch.float64)
        for name, shape in zip(layout.names, layout.shapes, strict=True)
    }


@every_layout
@pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
def test_unpack_inverts_pack(layout, batch):
    named = tensors(layout, batch)
    block = layout.pack(named)
    assert block.shape == (*batch, *layout.block_shape)
    back = layout.unpack(block)
    assert list(back) == list(layout.names)
    for name in layout.names:
        assert torch.equal(back[name], named[name])


@every_layout
def test_pack_is_a_permutation_of_the_parameters(layout):
    named = tensors(layout, ())
    values = torch.cat([t.flatten() for t in named.values()])
    assert torch.equal(layout.pack(named).flatten().sort().values, values.sort().values)
    assert layout.numel == values.numel() == math.prod(layout.block_shape)


@every_layout
def test_a_batch_is_packed_example_by_example(layout):
    named = tensors(layout, (3,))
    block = layout.pack(named)
    for n in range(3):
        assert torch.equal(block[n], layout.pack({name: t[n] for name, t in named.items()}))


@every_layout
def test_a_layout_survives_json(layout):
    assert layout_from_dict(json.loads(json.dumps(layout.to_dict()))) == layout


def test_an_unknown_kind_raises():
    with pytest.raises(ValueError, match="unknown layout kind 'ring'.*matrix, stack, joined"):
        layout_from_dict({"kind": "ring", "names": [], "shapes": []})


def test_the_bias_is_the_last_column():
    layout = LAYOUTS["linear"]
    named = tensors(layout, ())
    assert torch.equal(layout.pack(named), torch.cat([named["w"], named["b"][:, None]], 1))


def test_a_permuted_weight_is_transposed():
    named = tensors(LAYOUTS["table"], ())
    assert torch.equal(LAYOUTS["table"].pack(named), named["w"].T)


def test_groups_of_a_permuted_weight_are_split_off_first():
    layout = LAYOUTS["grouped transposed convolution"]
    named = tensors(layout, ())
    block = layout.pack(named)
    for group in range(2):
        weight = named["w"][3 * group : 3 * group + 3]  # (c_in, c_out, kernel)
        assert torch.equal(block[group, :, :9], weight.transpose(0, 1).reshape(2, 9))
    assert torch.equal(block[..., 9].flatten(), named["b"])


def test_a_description_without_a_view_is_read():
    """Files written before layouts had one."""
    data = LAYOUTS["three permuted dimensions"].to_dict()
    del data["view"]
    assert layout_from_dict(data) == LAYOUTS["three permuted dimensions"]


def test_scale_and_shift_of_a_channel_share_a_sub_block():
    layout = LAYOUTS["norm"]
    named = tensors(layout, ())
    block = layout.pack(named)
    for channel in range(5):
        assert torch.equal(block[channel, :, 0], torch.stack([named["w"][channel], named["b"][channel]]))


@every_layout
def test_lines_are_where_the_numbers_of_a_parameter_are(layout):
    found = lines(layout)
    numbers = layout.unpack(torch.arange(layout.numel).view(layout.block_shape))
    if found is None:
        assert "permute=(1" in repr(layout) or "permute=(0, 2" in repr(layout)
        return
    for (start, rows, distance), number in zip(found, numbers.values(), strict=True):
        columns = number.numel() // rows
        expected = start + distance * torch.arange(rows).view(-1, 1) + torch.arange(columns)
        assert torch.equal(number.flatten(), expected.flatten())


@pytest.mark.parametrize("name", ["linear", "weight only", "bias only", "convolution", "norm", "scalar"])
def test_common_layouts_have_lines(name):
    assert lines(LAYOUTS[name]) is not None
    assert name not in ("weight only", "bias only") or lines(LAYOUTS[name])[0][1] == 1


def test_parameters_without_elements_have_no_lines():
    assert lines(MatrixLayout(("w",), ((0, 4),), (0, 4))) is None


@every_layout
def test_columns_are_what_the_memory_is_made_of(layout):
    named = tensors(layout, ())
    found = columns(layout, [named[name] for name in layout.names])
    if found is None:
        return
    weight, bias = found
    if bias is None:
        assert torch.equal(layout.pack(named).flatten(), weight.flatten())
    else:
        rows = bias.numel()
        own = torch.cat([weight.view(rows, -1), bias.view(rows, 1)], -1)
        assert torch.equal(layout.pack(named).flatten(), own.flatten())
        assert layout.block_shape[-1] == own.shape[-1]


@pytest.mark.parametrize(
    ("shapes", "parts"),
    [(((4, 3), (4,)), 2), (((1, 3), (1,)), 2), (((4, 1), (4,)), 2), (((1, 1), (1,)), 2), (((4, 3),), 1)],
)
def test_common_layouts_are_columns(shapes, parts):
    layout = MatrixLayout(("w", "b")[: len(shapes)], shapes, shapes[0])
    found = columns(layout, [torch.ones(shape) for shape in shapes])
    assert found is not None and (found[1] is None) == (parts == 1)


@pytest.mark.parametrize("name", ["norm", "three permuted dimensions", "grouped transposed convolution"])
def test_other_orders_are_not_columns(name):
    layout = LAYOUTS[name]
    assert columns(layout, list(tensors(layout, ()).values())) is None


@pytest.mark.parametrize("name", ["convolution", "grouped convolution", "grouped bias only", "scalar"])
def test_convolutions_and_single_parameters_are_columns(name):
    layout = LAYOUTS[name]
    assert columns(layout, list(tensors(layout, ()).values())) is not None
