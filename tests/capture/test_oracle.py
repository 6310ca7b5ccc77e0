"""The oracle against mathematics done by hand."""

import pytest
import torch
from torch import nn

from tiny_models import normal
from vogn.capture import oracle
from vogn.errors import UnsupportedObservationError


def squared(outputs, targets):
    return 0.5 * (outputs - targets).square().sum()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()


def test_gradients_of_a_linear_model_are_residual_times_input():
    model, x, y = nn.Linear(3, 2).double(), normal(5, 3), normal(5, 2, seed=1)
    residual = (model(x) - y).detach()
    gradients = oracle.per_example_gradients(model, x, y, squared)
    torch.testing.assert_close(gradients["weight"], torch.einsum("no,ni->noi", residual, x))
    torch.testing.assert_close(gradients["bias"], residual)


def test_both_engines_agree_and_sum_to_the_batch_gradient(network):
    x, y = normal(5, 3), normal(5, 2, seed=1)
    loop = oracle.per_example_gradients(network, x, y, squared)
    zero = oracle.zero_tensor_gradients(network, x, y, squared)
    batch = torch.autograd.grad(squared(network(x), y), list(network.parameters()))
    assert list(loop) == list(zero) == [name for name, _ in network.named_parameters()]
    for name, gradient in zip(loop, batch, strict=True):
        torch.testing.assert_close(loop[name], zero[name])
        torch.testing.assert_close(zero[name].sum(0), gradient)


def test_a_layer_that_is_called_twice_adds_its_calls():
    layer = nn.Linear(3, 3).double()
    model = nn.Sequential(layer, nn.Tanh(), layer)
    x, y = normal(5, 3), normal(5, 3, seed=1)
    loop = oracle.per_example_gradients(model, x, y, squared)
    zero = oracle.zero_tensor_gradients(model, x, y, squared)
    for name in loop:
        torch.testing.assert_close(loop[name], zero[name])


def test_rows_of_batch_norm_sum_to_the_batch_gradient_and_leave_its_buffers_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4, momentum=0.0), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = normal(5, 3), normal(5, 2, seed=1)
    before = {name: b.clone() for name, b in model[1].named_buffers() if b.is_floating_point()}
    rows = oracle.zero_tensor_gradients(model, x, y, squared)
    batch = torch.autograd.grad(squared(model(x), y), list(model.parameters()))
    for (name, _), gradient in zip(model.named_parameters(), batch, strict=True):
        torch.testing.assert_close(rows[name].sum(0), gradient)
    for name, value in before.items():
        assert torch.equal(getattr(model[1], name), value)


def test_a_parameter_beside_children_raises():
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    with pytest.raises(UnsupportedObservationError, match="MultiheadAttention.*per_example_gradients"):
        oracle.zero_tensor_gradients(model, torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), squared)


def test_a_failing_forward_leaves_no_hooks(network):
    with pytest.raises(RuntimeError):
        oracle.zero_tensor_gradients(network, normal(5, 2), normal(5, 2), squared)
    assert not any(module._forward_hooks for module in network.modules())


def test_frozen_parameters_are_left_out(network):
    network[0].bias.requires_grad_(False)
    x, y = normal(5, 3), normal(5, 2, seed=1)
    assert "0.bias" not in oracle.per_example_gradients(network, x, y, squared)
    assert "0.bias" not in oracle.zero_tensor_gradients(network, x, y, squared)
    assert oracle.ggn(network, x, lambda outputs: torch.eye(2).double().expand(5, 2, 2)).shape == (22, 22)


def test_ggn_of_a_linear_model_is_the_hessian():
    model, x, y = nn.Linear(3, 2).double(), normal(5, 3), normal(5, 2, seed=1)

    def mean_loss(flat):
        weight, bias = flat[:6].view(2, 3), flat[6:]
        return squared(x @ weight.T + bias, y) / 5

    flat = torch.cat([p.detach().flatten() for p in model.parameters()])
    hessian = torch.autograd.functional.hessian(mean_loss, flat)
    torch.testing.assert_close(oracle.ggn(model, x, lambda outputs: torch.eye(2).double().expand(5, 2, 2)), hessian)


def test_ggn_uses_the_output_hessian_of_each_example(network):
    x = normal(4, 3)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    whole = oracle.ggn(network, x, lambda outputs: scale[:, None, None] * torch.eye(2).double())
    parts = [oracle.ggn(network, x[n : n + 1], lambda outputs: torch.eye(2).double()[None]) for n in range(4)]
    torch.testing.assert_close(whole, sum(s * part for s, part in zip(scale, parts, strict=True)) / 4)


def test_empirical_fisher_is_the_mean_outer_product(network):
    x, y = normal(5, 3), normal(5, 2, seed=1)
    expected = torch.zeros(26, 26, dtype=torch.float64)
    for n in range(5):
        gradient = torch.autograd.grad(squared(network(x[n]), y[n]), list(network.parameters()))
        vector = torch.cat([g.flatten() for g in gradient])
        expected += torch.outer(vector, vector) / 5
    torch.testing.assert_close(oracle.empirical_fisher(network, x, y, squared), expected)
