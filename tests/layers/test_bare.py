"""Bare parameters and PReLU."""

import pytest
import torch
from torch import nn

from vogn.layers import parameter_layout, parameter_rows
from vogn.linalg.layout import StackLayout


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 2)])
@pytest.mark.parametrize("columns", [1, 3])
def test_parameter_rows_are_the_gradients(normal, shape, columns):
    gradients = normal(columns, 4, *shape)
    rows = parameter_rows(gradients)
    layout = StackLayout(("p",), (shape,))
    assert rows.shape == layout.block_shape
    assert torch.equal(rows.dense(), layout.pack({"p": gradients}))
    flat = gradients.reshape(columns * 4, -1)
    torch.testing.assert_close(rows.gram(), flat @ flat.T)
    torch.testing.assert_close(rows.squares().flatten(), flat.square().sum(0))


@pytest.mark.parametrize(
    ("shape", "block"),
    [((), (1, 1, 1)), ((5,), (5, 1, 1)), ((5, 3), (5, 3)), ((5, 3, 2, 2), (5, 12)), ((1, 4), (1, 4))],
)
def test_parameter_layout(normal, shape, block):
    layout = parameter_layout("p", shape)
    assert layout.block_shape == block
    tensor = normal(2, *shape)
    assert layout.pack({"p": tensor}).shape == (2, *block)
    assert torch.equal(layout.unpack(layout.pack({"p": tensor}))["p"], tensor)


@pytest.mark.parametrize("space", [(), (3,), (2, 3)])
@pytest.mark.parametrize("slopes", [1, 4])
def test_prelu(check_rule, normal, space, slopes):
    check_rule(nn.PReLU(slopes), normal(5, 4, *space))


def test_prelu_of_a_vector_and_of_a_scalar(check_rule, normal):
    check_rule(nn.PReLU(), normal(5))
    check_rule(nn.PReLU(), -torch.ones((), dtype=torch.float64), unbatched=True)
