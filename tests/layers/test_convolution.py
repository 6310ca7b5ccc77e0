"""Rows of nn.Conv1d, nn.Conv2d, nn.Conv3d."""

import pytest
import torch
from torch import nn

LAYERS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
SPACE = {1: (7,), 2: (6, 5), 3: (4, 4, 3)}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"padding": 1},
        {"padding": "same"},
        {"padding": "valid"},
        {"dilation": 2, "padding": 2},
        {"stride": 2, "padding": 1, "dilation": 2},
    ],
    ids=str,
)
def test_rows_equal_per_example_gradients(check_rule, normal, dims, bias, groups, options):
    layer = LAYERS[dims](4, 4, 3 if dims < 3 else 2, groups=groups, bias=bias, **options)
    rows, layout = check_rule(layer, normal(3, 4, *SPACE[dims]))
    assert layout.block_shape[:-2] == ((groups,) if groups > 1 else ())


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("mode", ["circular", "reflect", "replicate"])
@pytest.mark.parametrize("padding", [1, "same"])
def test_padding_modes(check_rule, normal, dims, mode, padding):
    check_rule(LAYERS[dims](2, 3, 3, padding=padding, padding_mode=mode), normal(2, 2, *SPACE[dims]))


@pytest.mark.parametrize("kernel", [2, 4])
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_same_padding_with_an_even_kernel_is_longer_behind(check_rule, normal, kernel, mode):
    check_rule(nn.Conv1d(2, 3, kernel, padding="same", padding_mode=mode), normal(2, 2, 7))


def test_options_that_differ_between_dimensions(check_rule, normal):
    layer = nn.Conv2d(2, 4, (2, 3), stride=(1, 2), padding=(2, 1), dilation=(2, 1), groups=2)
    check_rule(layer, normal(3, 2, 6, 7))
    check_rule(nn.Conv2d(2, 3, (2, 3), padding="same", dilation=(3, 2)), normal(2, 2, 6, 7))
    check_rule(nn.Conv2d(2, 3, (1, 3), padding=(0, 1), padding_mode="circular"), normal(2, 2, 3, 4))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(check_rule, normal, multiplier):
    rows, layout = check_rule(nn.Conv2d(3, 3 * multiplier, 3, groups=3, padding=1), normal(2, 3, 5, 4))
    assert layout.block_shape == (3, multiplier, 10)


def test_groups_with_different_numbers_of_channels(check_rule, normal):
    _, layout = check_rule(nn.Conv1d(6, 4, 3, groups=2), normal(3, 6, 5))
    assert layout.block_shape == (2, 2, 10)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_single_tracked_parameter(check_rule, normal, groups, frozen):
    layer = nn.Conv2d(2, 4, 3, groups=groups)
    getattr(layer, frozen).requires_grad_(False)
    check_rule(layer, normal(3, 2, 5, 4))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_unbatched_input_is_one_example(check_rule, normal, dims, groups):
    rows, _ = check_rule(LAYERS[dims](2, 4, 3, padding=1, groups=groups), normal(2, *SPACE[dims]), unbatched=True)
    assert rows.count == 1


@pytest.mark.parametrize("bias", [True, False])
def test_non_contiguous_and_channels_last_inputs(check_rule, normal, bias):
    check_rule(nn.Conv2d(2, 3, 3, bias=bias), normal(2, 5, 4, 2).permute(0, 3, 1, 2))
    check_rule(nn.Conv2d(2, 3, 1, bias=bias), normal(2, 2, 5, 4).to(memory_format=torch.channels_last))


def test_a_one_by_one_convolution_does_not_copy_its_input(normal):
    from vogn.layers import find_rule

    layer, x = nn.Conv2d(3, 2, 1, bias=False).double(), normal(4, 3, 5, 5)
    rows = find_rule(layer).rows(layer, ("weight",), (x,), normal(1, 4, 2, 5, 5))
    assert rows.a.data_ptr() == x.data_ptr()
