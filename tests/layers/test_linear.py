"""Rows of nn.Linear."""

import pytest
import torch
from torch import nn


@pytest.mark.parametrize("middle", [(), (1,), (3,), (2, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_equal_per_example_gradients(check_rule, normal, middle, bias):
    check_rule(nn.Linear(4, 3, bias=bias), normal(5, *middle, 4))


@pytest.mark.parametrize("frozen", ["weight", "bias"])
@pytest.mark.parametrize("middle", [(), (3,)])
def test_a_single_tracked_parameter(check_rule, normal, frozen, middle):
    layer = nn.Linear(4, 3)
    getattr(layer, frozen).requires_grad_(False)
    rows, layout = check_rule(layer, normal(5, *middle, 4))
    assert layout.block_shape == ((3, 1) if frozen == "weight" else (3, 4))
    assert len(layout.names) == 1


@pytest.mark.parametrize("bias", [True, False])
def test_a_one_dimensional_input_is_one_example(check_rule, normal, bias):
    rows, _ = check_rule(nn.Linear(4, 3, bias=bias), normal(4), unbatched=True)
    assert rows.count == 1


def test_the_bias_is_a_trailing_input_of_ones(check_rule, normal):
    rows, _ = check_rule(nn.Linear(4, 3), normal(5, 2, 4))
    assert torch.equal(rows.a[..., -1], torch.ones(5, 2, dtype=torch.float64))


def test_a_bias_alone_has_a_single_position(check_rule, normal):
    layer = nn.Linear(4, 3)
    layer.weight.requires_grad_(False)
    rows, _ = check_rule(layer, normal(5, 7, 4))
    assert rows.g.shape[-2] == rows.a.shape[-2] == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_pairs_become_float32(dtype):
    from vogn.layers import find_rule

    layer = nn.Linear(4, 3)
    rule = find_rule(layer)
    saved = (torch.randn(5, 4),)
    rows = rule.rows(layer, ("weight", "bias"), saved, torch.randn(1, 5, 3).to(dtype))
    assert rows.a.dtype == rows.g.dtype == torch.float32
