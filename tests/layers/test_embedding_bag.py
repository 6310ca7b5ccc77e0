"""Rows of nn.EmbeddingBag."""

import pytest
import torch
from torch import nn

from vogn.errors import UnsupportedObservationError
from vogn.layers import find_rule

ENTRIES = torch.tensor([1, 1, 4, 2, 5, 0, 4])
MODES = ["sum", "mean", "max"]
MATRIX = torch.tensor([[0, 3, 3, 6], [1, 1, 1, 1], [5, 2, 0, 5]])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_idx", [None, 1, 3, -1])
def test_rows_of_bags_of_equal_length(check_rule, mode, padding_idx):
    _, layout = check_rule(nn.EmbeddingBag(7, 3, mode=mode, padding_idx=padding_idx), MATRIX)
    assert layout.block_shape == (3, 7)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("padding_idx", [None, 1, 4])
@pytest.mark.parametrize("offsets", [[0, 2, 3], [0, 2, 2, 5], [0, 0, 7]], ids=["ragged", "empty inside", "empty ends"])
@pytest.mark.parametrize("last", [False, True])
def test_rows_of_bags_given_by_offsets(check_rule, mode, padding_idx, offsets, last):
    layer = nn.EmbeddingBag(7, 3, mode=mode, padding_idx=padding_idx, include_last_offset=last)
    rows, _ = check_rule(layer, ENTRIES, torch.tensor(offsets + [len(ENTRIES)] * last))
    assert rows.count == len(offsets)


@pytest.mark.parametrize("padding_idx", [None, 4])
def test_rows_of_weighted_bags(check_rule, normal, padding_idx):
    layer = nn.EmbeddingBag(7, 3, mode="sum", padding_idx=padding_idx)
    check_rule(layer, ENTRIES, torch.tensor([0, 2, 2]), normal(7))
    check_rule(layer, MATRIX, None, normal(3, 4))  # two-dimensional bags have no offsets


@pytest.mark.parametrize("mode", MODES)
def test_a_nested_input_is_its_bags(normal, mode):
    layer, bags = nn.EmbeddingBag(7, 3, mode=mode).double(), [ENTRIES[:2], ENTRIES[2:3], ENTRIES[3:]]
    nested = torch.nested.nested_tensor(bags, layout=torch.jagged)
    rule, offsets, g = find_rule(layer), torch.tensor([0, 2, 3]), normal(1, 3, 3)
    flat = rule.saved(layer, (ENTRIES, offsets), layer(ENTRIES, offsets))
    saved = rule.saved(layer, (nested,), layer(nested))
    rows = [rule.rows(layer, ("weight",), s, g).dense() for s in (saved, flat)]
    assert torch.equal(*rows) and rows[0].any()


def test_shorter_bags_are_masked(check_rule):
    rows, _ = check_rule(nn.EmbeddingBag(7, 3, mode="sum", padding_idx=4), ENTRIES, torch.tensor([0, 2, 3]))
    expected = [[True, True, False, False], [False] * 4, [True, True, True, False]]  # bags 1 1 | 4 | 2 5 0 4
    assert rows.mask.tolist() == expected
    assert torch.equal(rows.a.sum(-1), rows.mask.double())


def test_of_equal_maxima_one_entry_gets_the_gradient(check_rule, normal):
    layer = nn.EmbeddingBag(4, 3, mode="max").double()
    index, g = torch.tensor([[0, 1, 2], [2, 1, 1]]), normal(1, 2, 3)
    with torch.no_grad():
        layer.weight.copy_(normal(1, 3).expand(4, 3))
    output = layer(index)
    rows = find_rule(layer).rows(layer, ("weight",), find_rule(layer).saved(layer, (index,), output), g)
    expected = torch.autograd.grad(output, layer.weight, g[0])[0]
    torch.testing.assert_close(rows.dense()[0].sum(0), expected.T)
    assert ((rows.dense()[0] != 0).sum(-1) == 1).all()


def test_the_maximum_is_remembered_from_forward(normal):
    layer, index, g = nn.EmbeddingBag(7, 3, mode="max").double(), MATRIX, normal(1, 3, 3)
    rule = find_rule(layer)
    saved = rule.saved(layer, (index,), layer(index))
    before = rule.rows(layer, ("weight",), saved, g).dense()
    with torch.no_grad():
        layer.weight.neg_()
    assert torch.equal(rule.rows(layer, ("weight",), saved, g).dense(), before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bags", [0, 2])
def test_bags_without_entries_give_no_gradient(normal, mode, bags):
    layer, entries = nn.EmbeddingBag(7, 3, mode=mode).double(), torch.zeros(0, dtype=torch.long)
    rule, offsets = find_rule(layer), torch.zeros(bags, dtype=torch.long)
    saved = rule.saved(layer, (entries, offsets), layer(entries, offsets))
    rows = rule.rows(layer, ("weight",), saved, normal(1, bags, 3))
    assert rows.count == bags and rows.g.shape[-2] == 0
    assert not rows.dense().any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparse": True}, "'tok.weight': nn.EmbeddingBag.*sparse=False"),
        ({"scale_grad_by_freq": True}, "'tok.weight'.*scale_grad_by_freq=False"),
        ({"max_norm": 1.0}, "'tok.weight'.*max_norm=None"),
    ],
)
def test_options_without_a_dense_exact_gradient_raise(options, message):
    layer = nn.EmbeddingBag(7, 3, mode="sum", **options)
    with pytest.raises(UnsupportedObservationError, match=message):
        find_rule(layer).layout(layer, {"weight": "tok.weight"}, {"weight": (7, 3)})


def test_pytorch_scales_bags_by_the_counts_of_other_entries():
    """Why scale_grad_by_freq raises: entry 2 occurs once, so its gradient should be divided by 1."""
    layer = nn.EmbeddingBag(6, 1, mode="sum", scale_grad_by_freq=True)
    index = torch.tensor([[1, 1, 4, 2, 5, 0]])
    gradient = torch.autograd.grad(layer(index).sum(), layer.weight)[0].flatten()
    assert gradient[2] != 1.0
