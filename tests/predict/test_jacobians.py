"""Jacobians example by example, against one backward pass for each output."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from vogn.predict import jacobian


class Recurrent(nn.Module):
    """A network that ``vmap`` cannot run: its examples are differentiated one after the other."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 2), nn.Linear(2, 2)

    def forward(self, a, b, scale=1.0, unused=None):
        return scale * self.first(a) * self.second(b)


MODELS = {
    "perceptron": lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
    "convolution": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 2), nn.Flatten(), nn.Linear(4, 2)),
    "batch norm": lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2)),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (3, 1)), nn.Linear(1, 4), nn.TransformerEncoderLayer(4, 2, 5, batch_first=True), nn.Flatten()
    ),
    "recurrent": lambda: nn.Sequential(nn.Unflatten(1, (1, 3)), Recurrent()),
    "one output": lambda: nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)),
}


def by_hand(model, x):
    """``{name: (N, K, *shape)}`` in a plain loop."""
    outputs, parameters = model(x).reshape(len(x), -1), dict(model.named_parameters())
    slopes = {name: torch.zeros(*outputs.shape, *p.shape, dtype=x.dtype) for name, p in parameters.items()}
    for n, row in enumerate(outputs):
        for k, output in enumerate(row):
            gradients = torch.autograd.grad(output, list(parameters.values()), retain_graph=True)
            for name, gradient in zip(parameters, gradients, strict=True):
                slopes[name][n, k] = gradient
    return outputs, slopes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("batch_size", [2, 32])
def test_equals_a_loop_over_outputs(name, batch_size):
    torch.manual_seed(0)
    model, x = MODELS[name]().double(), torch.randn(5, 3, dtype=torch.float64)
    model(x)  # running statistics
    expected_outputs, expected = by_hand(model.eval(), x)
    model.train()
    outputs, found = jacobian(model, dict(model.named_parameters()), x, batch_size=batch_size)
    assert_close(outputs.reshape(5, -1), expected_outputs)
    assert found.keys() == expected.keys()
    for key in found:
        assert_close(found[key], expected[key])
    assert model.training and all(parameter.grad is None for parameter in model.parameters())


def test_other_weights_than_the_models_own():
    model, x = nn.Linear(3, 2), torch.randn(4, 3)
    model.double()
    weights = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
    outputs, found = jacobian(model, weights, x.double(), names=["bias"])
    assert_close(outputs, x.double().sum(-1, keepdim=True).expand(4, 2))
    assert list(found) == ["bias"]
    assert_close(found["bias"], torch.eye(2, dtype=torch.float64).expand(4, 2, 2))


def test_several_inputs():
    model, a, b = TwoInputs(), torch.randn(4, 3), torch.randn(4, 2)
    for x in ((a, b), {"a": a, "b": b}):
        _, found = jacobian(model, dict(model.named_parameters()), x)
        assert_close(found["first.bias"], torch.diag_embed(model.second(b)).detach())


def test_arguments_that_are_no_tensors_are_shared():
    model, a, b = TwoInputs(), torch.randn(4, 3), torch.randn(4, 2)
    _, found = jacobian(model, dict(model.named_parameters()), [{"a": a, "b": b, "scale": 3.0, "unused": None}])
    assert_close(found["first.bias"], 3.0 * torch.diag_embed(model.second(b)).detach())


def test_what_cannot_be_differentiated_is_refused():
    model = nn.Linear(3, 2)
    weights, x = dict(model.named_parameters()), torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"names=\['odd'\] must name at least one of the weights and no others"):
        jacobian(model, weights, x, names=["odd"])
    with pytest.raises(ValueError, match=r"names=\[\] must name at least one"):
        jacobian(model, weights, x, names=[])
    with pytest.raises(ValueError, match="no examples"):
        jacobian(model, weights, [])
    with pytest.raises(TypeError, match="returns a tensor of outputs, got tuple"):
        jacobian(nn.LSTM(3, 2), dict(nn.LSTM(3, 2).named_parameters()), torch.randn(4, 1, 3))
    with pytest.raises(RuntimeError, match="shapes"):
        jacobian(model, weights, torch.randn(4, 7))
