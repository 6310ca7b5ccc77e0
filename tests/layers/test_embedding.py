"""Rows of nn.Embedding."""

import pytest
import torch
from torch import nn

from vogn.errors import UnsupportedObservationError
from vogn.layers import find_rule

INDICES = {
    "flat": torch.tensor([0, 3, 3, 6]),
    "sequence": torch.tensor([[0, 3, 3, 6], [1, 1, 1, 1], [5, 2, 0, 5]]),
    "two middle dimensions": torch.tensor([[[0, 3], [3, 6]], [[1, 1], [2, 1]]]),
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
@pytest.mark.parametrize("padding_idx", [None, 3, -1])
def test_rows_equal_per_example_gradients(check_rule, index, padding_idx):
    rows, layout = check_rule(nn.Embedding(7, 3, padding_idx=padding_idx), index)
    assert layout.block_shape == (3, 7)


def test_a_scalar_index_is_one_example(check_rule):
    rows, _ = check_rule(nn.Embedding(7, 3), torch.tensor(2), unbatched=True)
    assert rows.count == 1


def test_padding_is_masked(check_rule):
    index = INDICES["sequence"]
    rows, _ = check_rule(nn.Embedding(7, 3, padding_idx=3), index)
    assert torch.equal(rows.mask, index != 3)
    assert torch.equal(rows.a.sum(-1), (index != 3).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparse": True}, "'tok.weight'.*sparse=False"),
        ({"scale_grad_by_freq": True}, "'tok.weight'.*scale_grad_by_freq=False"),
        ({"max_norm": 1.0}, "'tok.weight'.*max_norm=None"),
    ],
)
def test_options_without_a_dense_exact_gradient_raise(options, message):
    layer = nn.Embedding(7, 3, **options)
    with pytest.raises(UnsupportedObservationError, match=message):
        find_rule(layer).layout(layer, {"weight": "tok.weight"}, {"weight": (7, 3)})
