"""Random options of layers: rows are the gradients of a loop over examples, and their sum is the batch's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tiny_models import normal
from vogn.layers import find_rule

PROFILES = [
    pytest.param("quick"),
    pytest.param("thorough", marks=pytest.mark.slow),
]
SIZES = st.integers(1, 3)


@st.composite
def linear(draw):
    d_in = draw(SIZES)
    module = nn.Linear(d_in, draw(SIZES), bias=draw(st.booleans()))
    return module, normal(draw(SIZES), *draw(st.lists(SIZES, max_size=2)), d_in, seed=1)


@st.composite
def convolution(draw, dimensions):
    groups = draw(SIZES)
    kernel = [draw(SIZES) for _ in range(dimensions)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dimensions)]
    same = draw(st.booleans())
    stride = [1 if same else draw(SIZES) for _ in range(dimensions)]
    size = [d * (k - 1) + 1 + draw(st.integers(0, 3)) for k, d in zip(kernel, dilation, strict=True)]
    padding = "same" if same else draw(st.sampled_from(["valid", 0, 1]))
    mode = draw(st.sampled_from(["zeros", "replicate", "circular", "reflect"]))
    if mode == "reflect":  # padding must be smaller than the input
        size = [max(s, d * (k - 1) + 2) for s, k, d in zip(size, kernel, dilation, strict=True)]
    module = (nn.Conv1d, nn.Conv2d)[dimensions - 1](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        tuple(kernel),
        stride=tuple(stride),
        padding=padding if isinstance(padding, str) else (padding,) * dimensions,
        dilation=tuple(dilation),
        groups=groups,
        bias=draw(st.booleans()),
        padding_mode=mode,
    )
    return module, normal(draw(SIZES), module.in_channels, *size, seed=2)


@st.composite
def embedding(draw):
    size = draw(st.integers(2, 4))
    module = nn.Embedding(
        size,
        draw(SIZES),
        padding_idx=draw(st.sampled_from([None, 0, -1])),
    )
    shape = (draw(SIZES), *draw(st.lists(SIZES, max_size=2)))
    return module, torch.randint(0, size, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 99))))


@st.composite
def layer_norm(draw):
    shape = draw(st.lists(st.integers(2, 3), min_size=1, max_size=2))
    affine = draw(st.booleans())
    module = nn.LayerNorm(shape, bias=affine) if draw(st.booleans()) else nn.RMSNorm(shape)
    return module, normal(draw(SIZES), *draw(st.lists(SIZES, max_size=1)), *shape, seed=3)


@st.composite
def group_norm(draw):
    groups = draw(SIZES)
    module = nn.GroupNorm(groups, groups * draw(st.integers(1, 2)))
    positions = (draw(st.integers(2, 3)), *draw(st.lists(SIZES, max_size=1)))
    return module, normal(draw(SIZES), module.num_channels, *positions, seed=4)


@st.composite
def batch_norm(draw):
    """In evaluation mode: with running statistics the examples are independent."""
    channels, dimensions = draw(SIZES), draw(st.integers(0, 2))
    module = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d)[dimensions](
        channels, eps=draw(st.sampled_from([1e-5, 0.1]))
    )
    with torch.no_grad():
        module.running_mean.copy_(normal(channels, seed=5))
        module.running_var.copy_(normal(channels, seed=6).square() + 0.1)
    return module.eval(), normal(draw(SIZES), channels, *(draw(SIZES) for _ in range(dimensions)), seed=7)


LAYERS = {
    "linear": linear(),
    "conv1d": convolution(1),
    "conv2d": convolution(2),
    "embedding": embedding(),
    "layer norm": layer_norm(),
    "group norm": group_norm(),
    "batch norm": batch_norm(),
}


def gradients(module, x, cotangent):
    """Gradients of ``<output, cotangent>``, by parameter name."""
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    grads = torch.autograd.grad((module(x) * cotangent).sum(), list(named.values()))
    return dict(zip(named, grads, strict=True))


def check_layer(case, columns, frozen):
    module, x = case
    module = module.double()
    names = [name for name, _ in module.named_parameters()]
    if frozen and len(names) > 1:
        module.get_parameter(names[frozen % 2]).requires_grad_(False)
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=20 + k))
    rule = find_rule(module)
    tracked = tuple(name for name, p in module.named_parameters() if p.requires_grad)
    shapes = {name: tuple(module.get_parameter(name).shape) for name in tracked}
    layout = rule.layout(module, {name: name for name in tracked}, shapes)
    output = module(x)
    cotangents = normal(columns, *output.shape, seed=30)
    with torch.no_grad():
        rows = rule.rows(module, tracked, rule.saved(module, (x,), output), cotangents)
    dense = rows.dense()
    assert dense.shape == (columns, x.shape[0], *layout.block_shape) and rows.count == x.shape[0]
    for k, cotangent in enumerate(cotangents):
        batch = layout.pack(gradients(module, x, cotangent))
        torch.testing.assert_close(dense[k].sum(0), batch, rtol=1e-12, atol=1e-12)
        for n in range(x.shape[0]):
            alone = layout.pack(gradients(module, x[n : n + 1], cotangent[n : n + 1]))
            torch.testing.assert_close(dense[k, n], alone, rtol=1e-12, atol=1e-12)
    flat = dense.flatten(2).flatten(0, 1)
    torch.testing.assert_close(rows.squares().flatten(), flat.square().sum(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rows.gram(), flat @ flat.T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", sorted(LAYERS))
@pytest.mark.parametrize("profile", PROFILES)
def test_rows_are_the_gradients_of_single_examples_and_sum_to_the_batchs(profile, name):
    property_of = given(LAYERS[name], st.integers(1, 3), st.integers(0, 2))(check_layer)
    settings.get_profile(profile)(property_of)()
