"""Filter response normalisation against a loop, and its rows against per-example autograd."""

import pytest
import torch

from vogn.layers.base import find_rule
from vogn.models.frn import FilterResponseNorm2d

N, C, H, W = 3, 4, 5, 2


def make(threshold: bool = True) -> tuple[FilterResponseNorm2d, torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    layer = FilterResponseNorm2d(C, eps=1e-3, threshold=threshold).double()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(C, generator=source, dtype=torch.float64))
    x = torch.randn(N, C, H, W, generator=source, dtype=torch.float64)
    return layer, x


@pytest.mark.parametrize("threshold", [True, False])
def test_forward_is_the_formula_of_the_paper_by_a_loop(threshold):
    layer, x = make(threshold)
    expected = torch.empty_like(x)
    for n in range(N):
        for c in range(C):
            scale = (sum(float(v) ** 2 for v in x[n, c].flatten()) / (H * W) + 1e-3) ** -0.5
            z = layer.gamma[c] * x[n, c] * scale + layer.beta[c]
            expected[n, c] = (z.clamp_min(layer.tau[c].item()) if threshold else z).detach()
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "attributes", [("gamma", "beta", "tau"), ("gamma", "beta"), ("tau",), ("beta", "tau"), ("gamma",)]
)
def test_rows_are_the_per_example_gradients(attributes):
    layer, x = make()
    columns = torch.randn(2, N, C, H, W, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rule = find_rule(layer)
    assert rule is not None
    names = {attribute: f"norm.{attribute}" for attribute in attributes}
    layout = rule.layout(layer, names, {attribute: (C,) for attribute in attributes})
    assert layout.names == tuple(names.values())
    assert layout.block_shape == (C, len(attributes), 1)
    rows = rule.rows(layer, attributes, rule.saved(layer, (x,), layer(x)), columns)
    assert rows.shape == layout.block_shape and rows.count == N and rows.columns == 2
    dense = rows.dense()
    for k in range(2):
        for n in range(N):
            gradient = torch.autograd.grad(
                (layer(x[n : n + 1]) * columns[k, n]).sum(), [getattr(layer, a) for a in attributes]
            )
            block = layout.pack(dict(zip(layout.names, gradient, strict=True)))
            torch.testing.assert_close(dense[k, n], block)


def test_rows_without_threshold():
    layer, x = make(threshold=False)
    rule = find_rule(layer)
    g = torch.ones(1, N, C, H, W, dtype=torch.float64)
    rows = rule.rows(layer, ("gamma", "beta"), rule.saved(layer, (x,), layer(x)), g)
    gradient = torch.autograd.grad(layer(x).sum(), [layer.gamma, layer.beta])
    torch.testing.assert_close(rows.dense().sum((0, 1)), torch.stack(gradient, -1).unsqueeze(-1))


def test_rows_share_ties_with_the_threshold_as_autograd_does():
    """Empty images meet the threshold exactly at the start, where beta = tau = 0."""
    layer, x = FilterResponseNorm2d(C).double(), torch.zeros(N, C, H, W, dtype=torch.float64)
    rule = find_rule(layer)
    g = torch.ones(1, N, C, H, W, dtype=torch.float64)
    rows = rule.rows(layer, ("gamma", "beta", "tau"), rule.saved(layer, (x,), layer(x)), g)
    gradient = torch.autograd.grad(layer(x).sum(), [layer.gamma, layer.beta, layer.tau])
    torch.testing.assert_close(rows.dense().sum((0, 1)), torch.stack(gradient, -1).unsqueeze(-1))
    assert gradient[2].any()


def test_rows_use_the_parameters_of_the_forward_pass():
    layer, x = make()
    rule = find_rule(layer)
    saved = rule.saved(layer, (x,), layer(x))
    g = torch.ones(1, N, C, H, W, dtype=torch.float64)
    before = rule.rows(layer, ("gamma", "beta", "tau"), saved, g).dense()
    with torch.no_grad():
        layer.tau.add_(1.0)
    assert torch.equal(rule.rows(layer, ("gamma", "beta", "tau"), saved, g).dense(), before)


def test_half_precision_squares_do_not_overflow():
    layer = FilterResponseNorm2d(1)
    x = torch.full((1, 1, 2, 2), 1000.0, dtype=torch.float16)
    assert layer(x).dtype == torch.float16
    torch.testing.assert_close(layer(x), torch.ones_like(x))


def test_illegal_arguments_raise():
    with pytest.raises(ValueError, match="both must be positive"):
        FilterResponseNorm2d(0)
    with pytest.raises(ValueError, match="both must be positive"):
        FilterResponseNorm2d(3, eps=0.0)
    with pytest.raises(ValueError, match=r"input has shape \(2, 4\); \(N, 3, H, W\) is needed"):
        FilterResponseNorm2d(3)(torch.zeros(2, 4))
