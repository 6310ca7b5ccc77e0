"""Gradients that are taken from the rows of a diagonal are those of autograd, or autograd's are left alone."""

import copy

import pytest
import torch
from torch import nn

import vogn
from vogn.capture import gradients_from_rows
from vogn.capture.statistics import Empirical
from vogn.likelihoods import Gaussian
from vogn.structures import Diagonal

N = 6


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Mean(nn.Module):
    """The mean over positions."""

    def forward(self, x):
        return x.flatten(2).mean(-1)


LAYERS = {
    "linear over positions": (lambda: nn.Linear(5, 4), (N, 3, 5)),
    "linear over two dimensions": (lambda: nn.Linear(5, 4, bias=False), (N, 3, 2, 5)),
    "conv 1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1), (N, 2, 9)),
    "conv 2d": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1)), (N, 2, 7, 6)),
    "conv 3d": (lambda: nn.Conv3d(1, 2, 2), (N, 1, 3, 4, 3)),
    "wide": (lambda: nn.Conv2d(2, 12, 3, padding=1), (N, 2, 3, 3)),
    "a point": (lambda: nn.Conv2d(4, 3, 1, bias=False), (N, 4, 3, 3)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (N, 4, 5, 5)),
    "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, bias=False), (N, 4, 5, 5)),
    "same, odd padding": (lambda: nn.Conv2d(2, 3, (4, 3), padding="same"), (N, 2, 6, 5)),
    "circular, same": (lambda: nn.Conv1d(2, 3, 4, padding="same", padding_mode="circular"), (N, 2, 6)),
}
every_layer = pytest.mark.parametrize(("build", "shape"), LAYERS.values(), ids=LAYERS.keys())


@pytest.fixture
def taken(monkeypatch):
    """How many gradients have been taken from rows, and how many backward passes had asked for one."""
    counts = {"asked": 0, "taken": 0}
    call = gradients_from_rows._LayerTotal.__call__

    def counted(self, grad):
        found = call(self, grad)
        counts["asked"] += 1
        counts["taken"] += found is not None
        return found

    monkeypatch.setattr(gradients_from_rows._LayerTotal, "__call__", counted)
    return counts


def network(build, *more):
    torch.manual_seed(0)
    return nn.Sequential(build(), *more).double()


def loss(model, x, y, change):
    outputs = model[0](x)
    if change is not None:
        outputs.register_hook(change)
    for module in model[1:]:
        outputs = module(outputs)
    return Gaussian(noise=0.5)(outputs, y)


def compare(model, x, *, method=vogn.VOGN, change=None, passes=1, **options):
    """Gradients in a context of an optimizer are those that autograd finds in a copy of the model."""
    twin = copy.deepcopy(model)
    with torch.no_grad():
        y = torch.randn_like(twin(x))
    opt = method(model, ess=N, variational=False, **options)
    with opt.sampled_params():
        for _ in range(passes):
            loss(model, x, y, change).backward()
    assert all("forward" not in vars(module) for module in model.modules())
    for _ in range(passes):
        loss(twin, x, y, change).backward()
    found, expected = ([parameter.grad.clone() for parameter in each.parameters()] for each in (model, twin))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-13)
    opt.step()


@every_layer
def test_gradients_are_those_of_autograd(taken, build, shape):
    compare(network(build, nn.Tanh()), normal(*shape))
    assert taken == {"asked": 1, "taken": 1}


def test_gradients_accumulate(taken):
    compare(network(LAYERS["conv 2d"][0]), normal(N, 2, 7, 6), passes=3)
    assert taken == {"asked": 3, "taken": 3}


def test_operations_in_place_behind_the_layer(taken):
    compare(network(LAYERS["conv 2d"][0], nn.ReLU(inplace=True), Mean()), normal(N, 2, 7, 6))
    assert taken == {"asked": 1, "taken": 1}


@pytest.mark.parametrize("change", [lambda grad: 2.0 * grad, lambda grad: grad.mul_(2.0)], ids=["new", "in place"])
def test_a_gradient_that_a_hook_has_changed_is_not_that_of_the_rows(taken, change):
    compare(network(LAYERS["conv 2d"][0], nn.Tanh()), normal(N, 2, 7, 6), change=change)
    assert taken == {"asked": 1, "taken": 0}


def some_examples(model, **options):
    return vogn.NaturalGradient(model, Diagonal(), Empirical(examples=2), lr=0.1, **options)


@pytest.mark.parametrize(
    ("method", "options"),
    [(some_examples, {}), (vogn.KFAC, {"fisher": "empirical"}), (vogn.IVON, {}), (vogn.VOGN, {})],
    ids=["some examples", "kfac", "ivon", "one position"],
)
def test_layers_whose_rows_nobody_forms_keep_their_backward(taken, method, options):
    shape = (N, 5) if method is vogn.VOGN else (N, 3, 5)
    compare(network(LAYERS["linear over positions"][0], nn.Tanh()), normal(*shape), method=method, **options)
    assert taken["asked"] == 0


def test_a_layer_that_is_called_twice(taken):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv1d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.layer(torch.tanh(self.layer(x)))

    compare(network(Twice), normal(N, 2, 5))
    assert taken == {"asked": 2, "taken": 0}


def test_a_frozen_weight_or_bias(taken):
    for frozen in ("weight", "bias"):
        model = network(LAYERS["conv 1d"][0], nn.Tanh(), nn.Conv1d(4, 2, 3))
        getattr(model[0], frozen).requires_grad_(False)
        opt = vogn.VOGN(model, ess=N, variational=False)
        x, y = normal(N, 2, 9), normal(N, 2, 3, seed=1)
        with opt.sampled_params():
            Gaussian(noise=0.5)(model(x), y).backward()
        found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        expected = torch.autograd.grad(
            Gaussian(noise=0.5)(model(x), y), [p for p in model.parameters() if p.requires_grad]
        )
        torch.testing.assert_close(list(found.values()), list(expected), rtol=1e-11, atol=1e-13)
        assert getattr(model[0], frozen).grad is None
    assert taken == {"asked": 3, "taken": 3}  # a layer of which only the bias is trained has no rows to form


def test_gradients_of_gradients_are_autograds(taken):
    model = network(LAYERS["conv 2d"][0], nn.Tanh())
    x = normal(N, 2, 7, 6)
    opt = vogn.VOGN(model, ess=N, variational=False)
    with opt.sampled_params():
        outputs = model(x)
        y = torch.ones_like(outputs)
        first = torch.autograd.grad(Gaussian(noise=0.5)(outputs, y), list(model.parameters()), create_graph=True)
    assert taken["taken"] == 0
    plain = torch.autograd.grad(Gaussian(noise=0.5)(model(x), y), list(model.parameters()), create_graph=True)
    torch.testing.assert_close(first, plain)
    second, expected = (
        torch.autograd.grad(sum(g.square().sum() for g in grads), list(model.parameters())) for grads in (first, plain)
    )
    torch.testing.assert_close(second, expected)


def test_the_layer_is_the_stock_one_after_an_error_and_in_copies():
    model = network(LAYERS["conv 1d"][0], nn.Tanh())
    opt = vogn.VOGN(model, ess=N, variational=False)
    x = normal(N, 2, 9)
    with pytest.raises(KeyError), opt.sampled_params():
        twin = copy.deepcopy(model)
        assert "forward" in vars(model[0])
        torch.testing.assert_close(twin(x), model(x))
        assert "forward" not in vars(twin[0])
        raise KeyError
    assert "forward" not in vars(model[0])


def test_a_forward_of_the_users_own_is_kept(taken):
    model = network(LAYERS["conv 1d"][0], nn.Tanh())
    stock = model[0].forward
    model[0].forward = lambda x: 2.0 * stock(x)
    opt = vogn.VOGN(model, ess=N, variational=False)
    x = normal(N, 2, 9)
    expected = 2.0 * stock(x)
    with opt.sampled_params():
        torch.testing.assert_close(model[0](x), expected)
        Gaussian(noise=0.5)(model(x), normal(N, 4, 5)).backward()
    assert taken["asked"] == 0


def test_autocast_rounds_as_it_does_without(taken):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(2), nn.Linear(9, 3))
    opt = vogn.VOGN(model, ess=N, variational=False)
    x, y = torch.randn(N, 2, 5, 5), torch.randn(N, 4, 3)

    def backward():
        with torch.autocast("cpu", torch.bfloat16):
            outputs = model(x)
        assert outputs.dtype == torch.bfloat16
        Gaussian(noise=0.5)(outputs.float(), y).backward()

    backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    opt.zero_grad()
    with opt.sampled_params():
        backward()
    assert taken == {"asked": 2, "taken": 2}
    for found, stock in zip((p.grad for p in model.parameters()), expected, strict=True):
        assert found.dtype == stock.dtype == torch.float32
        torch.testing.assert_close(found, stock, rtol=2e-2, atol=2e-2)


def test_passes_for_bare_parameters_stay_vectorised(monkeypatch):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale, self.linear = nn.Conv2d(2, 4, 3), nn.Parameter(torch.ones(4, 1, 1)), nn.Linear(9, 5)

        def forward(self, x):
            return self.linear((self.scale * torch.relu(self.conv(x))).flatten(2)).mean(1)

    model = network(Scaled)
    opt = vogn.VOGN(model, ess=N, variational=False)
    batched, grad = [], torch.autograd.grad

    def counted(*args, **options):
        found = grad(*args, **options)
        batched.append(options.get("is_grads_batched"))
        return found

    monkeypatch.setattr(torch.autograd, "grad", counted)
    with opt.sampled_params():
        Gaussian(noise=0.5)(model(normal(N, 2, 5, 5)), normal(N, 5, seed=1)).backward()
    assert batched == [True]
