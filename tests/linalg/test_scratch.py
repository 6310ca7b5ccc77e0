"""One vector for many tensors: what is written into its views is where the layouts pack it."""

from __future__ import annotations

import pytest
import torch

from vogn.linalg.layout import JoinedLayout, MatrixLayout, StackLayout
from vogn.linalg.scratch import Scratch, simple

LAYOUTS = [
    MatrixLayout(("w", "b"), ((3, 2, 2), (3,)), (3, 4)),
    StackLayout(("scale", "shift"), ((5,), (5,))),
    StackLayout(("alone",), ((2, 3),)),
    MatrixLayout(("only",), ((4,),), (4, 0)),
]
CPU = torch.device("cpu")


def tensors(layouts, seed):
    generator = torch.Generator().manual_seed(seed)
    return [
        {name: torch.randn(shape, generator=generator) for name, shape in zip(own.names, own.shapes, strict=True)}
        for own in layouts
    ]


def test_what_is_filled_in_is_packed():
    scratch = Scratch(LAYOUTS, dtype=torch.float32, device=CPU)
    for seed in range(2):  # the second writes over the first
        named = tensors(LAYOUTS, seed)
        vector = scratch.fill([x for own in named for x in own.values()])
        expected = [layout.pack(own).flatten() for layout, own in zip(LAYOUTS, named, strict=True)]
        assert torch.equal(vector.flatten(), torch.cat(expected))
        for layout, own, block in zip(LAYOUTS, named, scratch.blocks, strict=True):
            assert torch.equal(block, layout.pack(own))
    assert vector is scratch.vector


def test_another_vector_is_unpacked():
    scratch = Scratch(LAYOUTS, dtype=torch.float64, device=CPU)
    scratch.take()
    other = torch.arange(float(scratch.vector.numel()), dtype=torch.float64).unsqueeze(-1)
    parts = scratch.holding(other).parts
    place = 0
    for layout in LAYOUTS:
        named = layout.unpack(other[place : place + layout.numel].view(layout.block_shape))
        place += layout.numel
        for value in named.values():
            assert torch.equal(parts.pop(0), value)
    assert not parts
    assert scratch.holding(scratch.vector) is scratch and torch.equal(scratch.vector, other)


def test_gradients_of_any_memory_format():
    layout = MatrixLayout(("w",), ((2, 3, 4, 4),), (2, 48))
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    scratch = Scratch([layout, layout], dtype=torch.float32, device=CPU)
    assert torch.equal(scratch.fill([x, 2 * x])[:96, 0], x.flatten())


def test_which_layouts_are_simple():
    transposed = MatrixLayout(("w",), ((2, 3),), (3, 2), permute=(1, 0))
    wide = MatrixLayout(("w",), ((2, 3, 4),), (3, 8), permute=(1, 0, 2))
    assert simple(LAYOUTS)
    assert not simple([*LAYOUTS, wide]) and not simple([transposed])
    assert not simple([JoinedLayout((transposed,))])


@pytest.mark.parametrize(
    "device",
    [
        CPU,
        pytest.param(
            torch.device("cuda"),
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
            ],
        ),
    ],
    ids=str,
)
def test_released_memory_comes_back_with_the_views(device):
    scratch = Scratch(LAYOUTS, dtype=torch.float32, device=device)
    assert scratch.vector.untyped_storage().nbytes() == 0
    for seed in range(2):
        named = tensors(LAYOUTS, seed)
        vector = scratch.fill([x.to(device) for own in named for x in own.values()])
        expected = [layout.pack(own).flatten() for layout, own in zip(LAYOUTS, named, strict=True)]
        assert torch.equal(vector.flatten().cpu(), torch.cat(expected))
        scratch.release()
        assert scratch.vector.untyped_storage().nbytes() == 0
