"""Rows of nn.Bilinear."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("middle", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_equal_per_example_gradients(check_rule, normal, middle, bias):
    layer = nn.Bilinear(4, 2, 3, bias=bias)
    _, layout = check_rule(layer, normal(5, *middle, 4), normal(5, *middle, 2, seed=1))
    assert layout.block_shape == (3, 8 + bias)


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("middle", [(), (3,)])
def test_a_single_tracked_parameter(check_rule, normal, frozen, middle):
    layer = nn.Bilinear(4, 2, 3)
    getattr(layer, frozen).requires_grad_(False)
    _, layout = check_rule(layer, normal(5, *middle, 4), normal(5, *middle, 2, seed=1))
    assert layout.block_shape == ((3, 1) if frozen == "weight" else (3, 8))


def test_one_dimensional_inputs_are_one_example(check_rule, normal):
    rows, _ = check_rule(nn.Bilinear(4, 2, 3), normal(4), normal(2, seed=1), unbatched=True)
    assert rows.count == 1


def test_the_inputs_of_a_pair_are_products(check_rule, normal):
    left, right = normal(5, 4), normal(5, 2, seed=1)
    rows, _ = check_rule(nn.Bilinear(4, 2, 3, bias=False), left, right)
    assert torch.equal(rows.a[2, 0], torch.outer(left[2], right[2]).flatten())
