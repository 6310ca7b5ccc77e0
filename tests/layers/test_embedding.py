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


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES.keys())
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_rows_scaled_by_frequency_sum_to_the_batch_gradient(check_rule, index, padding_idx):
    check_rule(nn.Embedding(7, 3, padding_idx=padding_idx, scale_grad_by_freq=True), index)


def test_a_row_scaled_by_frequency_depends_on_the_batch(normal):
    layer = nn.Embedding(7, 3, scale_grad_by_freq=True).double()
    rule, index, g = find_rule(layer), INDICES["sequence"], normal(1, 3, 4, 3)
    whole = rule.rows(layer, ("weight",), (index,), g).dense()[0, 0]
    alone = rule.rows(layer, ("weight",), (index[:1],), g[:, :1]).dense()[0, 0]
    torch.testing.assert_close(whole[:, 0], alone[:, 0] / 2)  # entry 0 is in one other example, once
    torch.testing.assert_close(whole[:, 3], alone[:, 3])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparse": True}, "'tok.weight'.*sparse=False"),
        ({"max_norm": 1.0}, "'tok.weight'.*max_norm=None"),
    ],
)
def test_options_without_a_dense_exact_gradient_raise(options, message):
    layer = nn.Embedding(7, 3, **options)
    with pytest.raises(UnsupportedObservationError, match=message):
        find_rule(layer).layout(layer, {"weight": "tok.weight"}, {"weight": (7, 3)})
