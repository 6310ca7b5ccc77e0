"""Rows of nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vogn.layers import find_rule
from vogn.linalg.factors import kronecker_factors
from vogn.linalg.layout import layout_from_dict

LAYERS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
SPACE = {1: (4,), 2: (3, 2), 3: (2, 2, 2)}
OPTIONS = [
    {},
    {"stride": 2},
    {"padding": 1},
    {"padding": 2, "stride": 2},
    {"stride": 3, "padding": 1, "output_padding": 2},
    {"dilation": 2},
    {"stride": 2, "dilation": 3, "padding": 2, "output_padding": 2},
]


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_rows_equal_per_example_gradients(check_rule, normal, dims, bias, groups, options):
    kernel = 3 if dims < 3 or options.get("padding", 0) else 2
    layer = LAYERS[dims](2, 4, kernel, groups=groups, bias=bias, **options)
    _, layout = check_rule(layer, normal(2, 2, *SPACE[dims]))
    lead = (groups,) if groups > 1 else ()
    assert layout.block_shape == (*lead, 4 // groups, 2 // groups * kernel**dims + bias)


def test_options_that_differ_between_dimensions(check_rule, normal):
    layer = nn.ConvTranspose2d(
        2, 4, (2, 3), stride=(1, 3), padding=(0, 2), output_padding=(1, 0), dilation=(2, 1), groups=2
    )
    check_rule(layer, normal(3, 2, 3, 4))


def test_a_kernel_smaller_than_its_stride_leaves_gaps(check_rule, normal):
    check_rule(nn.ConvTranspose1d(2, 3, 1, stride=3, output_padding=2), normal(2, 2, 3))


@pytest.mark.parametrize("multiplier", [1, 2])
def test_depthwise(check_rule, normal, multiplier):
    _, layout = check_rule(nn.ConvTranspose2d(3, 3 * multiplier, 3, groups=3, stride=2), normal(2, 3, 3, 2))
    assert layout.block_shape == (3, multiplier, 10)


def test_groups_with_different_numbers_of_channels(check_rule, normal):
    _, layout = check_rule(nn.ConvTranspose1d(6, 4, 3, groups=2), normal(3, 6, 5))
    assert layout.block_shape == (2, 2, 10)
    assert layout_from_dict(layout.to_dict()) == layout


@pytest.mark.parametrize("size", [7, 8])
def test_an_output_size_given_at_call_time(normal, size):
    layer, x, g = nn.ConvTranspose1d(2, 3, 3, stride=2).double(), normal(2, 2, 3), normal(1, 2, 3, size)
    gradient = torch.autograd.grad((layer(x, output_size=[size]) * g[0]).sum(), layer.weight)[0]
    rows = find_rule(layer).rows(layer, ("weight", "bias"), (x,), g)
    layout = find_rule(layer).layout(
        layer, {"weight": "weight", "bias": "bias"}, {n: tuple(p.shape) for n, p in layer.named_parameters()}
    )
    torch.testing.assert_close(layout.unpack(rows.dense()[0].sum(0))["weight"], gradient)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("frozen", ["weight", "bias"])
def test_a_single_tracked_parameter(check_rule, normal, groups, frozen):
    layer = nn.ConvTranspose2d(2, 4, 3, groups=groups, stride=2)
    getattr(layer, frozen).requires_grad_(False)
    check_rule(layer, normal(3, 2, 3, 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_an_unbatched_input_is_one_example(check_rule, normal, dims, groups):
    rows, _ = check_rule(LAYERS[dims](2, 4, 2, stride=2, groups=groups), normal(2, *SPACE[dims]), unbatched=True)
    assert rows.count == 1


def test_kronecker_factors_are_those_of_the_convolution_of_the_spread_input(normal):
    """Zeros between the positions, a border of ``kernel - 1``, the kernel mirrored."""
    transposed = nn.ConvTranspose1d(2, 3, 3, stride=2).double()
    convolution = nn.Conv1d(2, 3, 3).double()
    x, g = normal(4, 2, 3), normal(1, 4, 3, 7)
    spread = torch.zeros(4, 2, 5, dtype=torch.float64)
    spread[..., ::2] = x
    spread = F.pad(spread, (2, 2))
    with torch.no_grad():
        convolution.weight.copy_(transposed.weight.transpose(0, 1).flip(-1))
        convolution.bias.copy_(transposed.bias)
    torch.testing.assert_close(convolution(spread), transposed(x))
    attributes = ("weight", "bias")
    ours = kronecker_factors(find_rule(transposed).rows(transposed, attributes, (x,), g), "expand")
    theirs = kronecker_factors(find_rule(convolution).rows(convolution, attributes, (spread,), g), "expand")
    order = [2, 1, 0, 5, 4, 3, 6]  # taps mirrored, channel by channel; the bias last
    torch.testing.assert_close(ours[0], theirs[0][order][:, order])
    torch.testing.assert_close(ours[1], theirs[1])
