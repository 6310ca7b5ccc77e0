"""Weighted forwards: the stock function, the stock gradient of the input, weighted gradients of the parameters."""

import pytest
import torch
from torch import nn

from vogn.layers.weighted import WEIGHTED

N = 5


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


CASES = {
    "linear": (nn.Linear(3, 4), (N, 3)),
    "linear without bias": (nn.Linear(3, 4, bias=False), (N, 3)),
    "linear over positions": (nn.Linear(3, 4), (N, 2, 6, 3)),
    "conv 1d": (nn.Conv1d(2, 4, 3, stride=2, padding=1), (N, 2, 7)),
    "conv 2d": (nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (N, 2, 7, 6)),
    "conv 3d": (nn.Conv3d(1, 2, 2), (N, 1, 3, 4, 3)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2, bias=False), (N, 4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (N, 4, 5, 5)),
    "same, odd padding": (nn.Conv2d(2, 3, (4, 3), padding="same"), (N, 2, 6, 5)),
    "valid": (nn.Conv1d(2, 3, 3, padding="valid"), (N, 2, 6)),
    "reflected": (nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (N, 2, 5, 5)),
    "circular, same": (nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular"), (N, 2, 6)),
    "layer norm": (nn.LayerNorm(4), (N, 3, 4)),
    "layer norm over two dimensions": (nn.LayerNorm((3, 4), bias=False), (N, 2, 3, 4)),
}
every_case = pytest.mark.parametrize(("module", "shape"), CASES.values(), ids=CASES.keys())


def drawn(module):
    module = module.double()
    with torch.no_grad():
        for k, parameter in enumerate(module.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=k + 1))
    return module


def test_every_weighted_layer_is_under_test():
    norms = {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}
    assert {type(module) for module, _ in CASES.values()} | norms == set(WEIGHTED)


@every_case
def test_gradients_of_parameters_are_weighted_sums_over_examples(module, shape):
    module, x, c = drawn(module), normal(*shape).requires_grad_(), normal(N, seed=9)
    output = WEIGHTED[type(module)](module, x, lambda grad: c.to(grad))
    torch.testing.assert_close(output, module(x), rtol=1e-13, atol=1e-13)
    direction = normal(*output.shape, seed=8)
    found = torch.autograd.grad(output, [x, *module.parameters()], direction)
    stock = torch.autograd.grad(module(x), [x, *module.parameters()], direction)
    torch.testing.assert_close(found[0], stock[0])
    parameters = list(module.parameters())
    rows = [torch.autograd.grad(module(x[n : n + 1]), parameters, direction[n : n + 1]) for n in range(N)]
    for k, gradient in enumerate(found[1:]):
        torch.testing.assert_close(gradient, sum(c[n] * rows[n][k] for n in range(N)))
    plain = torch.autograd.grad(WEIGHTED[type(module)](module, x, lambda grad: None), parameters, direction)
    for one, other in zip(plain, stock[1:], strict=True):
        torch.testing.assert_close(one, other)


@every_case
def test_outputs_may_be_changed_in_place(module, shape):
    module, x = drawn(module), normal(*shape)
    output = WEIGHTED[type(module)](module, x, lambda grad: None).relu_()
    found = torch.autograd.grad(output.sum(), list(module.parameters()))
    torch.testing.assert_close(found, torch.autograd.grad(module(x).relu().sum(), list(module.parameters())))


NORMS = {"1d": (nn.BatchNorm1d, (N, 3)), "2d": (nn.BatchNorm2d, (N, 3, 2, 2)), "3d": (nn.BatchNorm3d, (N, 3, 2, 2, 2))}
every_norm = pytest.mark.parametrize(("kind", "shape"), NORMS.values(), ids=NORMS.keys())


@every_norm
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("options", [{}, {"momentum": None}, {"track_running_stats": False}], ids=str)
def test_batch_norm_is_the_stock_one(kind, shape, training, options):
    """Output, running statistics and the gradient of the input; the parameters' from the normalised values."""
    module, twin = drawn(kind(3, **options)).train(training), drawn(kind(3, **options)).train(training)
    x, c = normal(*shape).requires_grad_(), normal(N, seed=9)
    for _ in range(2):
        output, stock = WEIGHTED[kind](module, x, lambda grad: c.to(grad)), twin(x)
        torch.testing.assert_close(output, stock)
    for name, buffer in twin.named_buffers():
        torch.testing.assert_close(module.get_buffer(name), buffer)
    direction = normal(*shape, seed=8)
    grad_x, grad_weight, grad_bias = torch.autograd.grad(output, [x, *module.parameters()], direction)
    torch.testing.assert_close(grad_x, torch.autograd.grad(stock, x, direction)[0])
    weighted = direction * c.view(-1, *(1,) * (len(shape) - 1))
    dims = (0, *range(2, len(shape)))
    view = (1, -1, *(1,) * (len(shape) - 2))
    values = (stock.detach() - twin.bias.view(view)) / twin.weight.view(view)
    torch.testing.assert_close(grad_bias, weighted.sum(dims))
    torch.testing.assert_close(grad_weight, (weighted * values.detach()).sum(dims))


def test_batch_norm_refuses_the_shapes_that_the_stock_one_refuses():
    with pytest.raises(ValueError, match="expected 4D input"):
        WEIGHTED[nn.BatchNorm2d](nn.BatchNorm2d(3), torch.zeros(2, 3), lambda grad: None)


@pytest.mark.parametrize("module", [nn.Linear(3, 4), nn.Conv1d(3, 4, 2)], ids=["linear", "conv"])
def test_an_input_without_a_batch_is_one_example(module):
    module = drawn(module)
    x = normal(3) if isinstance(module, nn.Linear) else normal(3, 6)
    output = WEIGHTED[type(module)](module, x, lambda grad: grad.new_full((len(grad),), 3.0))
    torch.testing.assert_close(output, module(x))
    stock = torch.autograd.grad(module(x).sum(), list(module.parameters()))
    for found, expected in zip(torch.autograd.grad(output.sum(), list(module.parameters())), stock, strict=True):
        torch.testing.assert_close(found, 3 * expected)


@pytest.mark.parametrize("module", [nn.Linear(3, 4), nn.Conv1d(3, 4, 2)], ids=["linear", "conv"])
def test_a_frozen_parameter_gets_no_gradient(module):
    module = drawn(module)
    module.weight.requires_grad_(False)
    x = normal(N, 3) if isinstance(module, nn.Linear) else normal(N, 3, 6)
    WEIGHTED[type(module)](module, x, lambda grad: None).sum().backward()
    assert module.weight.grad is None and module.bias.grad is not None
    module.weight.requires_grad_(True)


@pytest.mark.parametrize("module", [nn.Linear(3, 4), nn.Conv1d(3, 4, 2)], ids=["linear", "conv"])
def test_autocast_does_what_it_does_to_the_stock_layer(module):
    module = drawn(module).float()
    x = (normal(N, 3) if isinstance(module, nn.Linear) else normal(N, 3, 6)).float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, stock = WEIGHTED[type(module)](module, x, lambda grad: None), module(x)
    assert output.dtype == stock.dtype == torch.bfloat16
    torch.testing.assert_close(output, stock)
    found = torch.autograd.grad(output.sum(), [x, *module.parameters()])
    for one, other in zip(found, torch.autograd.grad(stock.sum(), [x, *module.parameters()]), strict=True):
        assert one.dtype == other.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
    module.double()


def test_a_second_derivative_is_that_of_the_weighted_gradient():
    """Nothing is cut off: the gradient of a gradient exists."""
    module, x = drawn(nn.Linear(3, 1)), normal(N, 3).requires_grad_()
    output = WEIGHTED[nn.Linear](module, x, lambda grad: None).square().sum()
    (grad,) = torch.autograd.grad(output, x, create_graph=True)
    (twice,) = torch.autograd.grad(grad.sum(), x)
    expected = 2 * (module.weight.sum() * module.weight).expand(N, 3)
    torch.testing.assert_close(twice, expected)
