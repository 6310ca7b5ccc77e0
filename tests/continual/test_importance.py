"""Synaptic intelligence and memory-aware synapses against their definitions."""

import pytest
import torch
from continual_cases import classification, loader, network, shake
from torch import nn
from torch.func import functional_call

import vogn
from vogn.continual import MemoryAwareSynapses, SynapticIntelligence, train_step
from vogn.likelihoods import Categorical, Gaussian


class Bowl(nn.Module):
    """Outputs ``(x, 2 y)``, whose squared loss is ``(x^2 + 4 y^2) / 2`` plus a constant."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.tensor([2.0, 1.0], dtype=torch.float64))

    def forward(self, inputs):
        return inputs * self.place * self.place.new_tensor([1.0, 2.0])


RATE, STEPS = 0.01, 600


def sgd(lr, **options):
    return lambda model, examples: torch.optim.SGD(model.parameters(), lr=lr, **options)


def descend(xi=0.1, strength=1.0):
    """Gradient descent of small steps from (2, 1) to (0, 0); the loss falls by 4."""
    model = Bowl()
    method = SynapticIntelligence(model, Gaussian(noise=1.0), xi=xi, strength=strength, optimizer=sgd(RATE))
    x, y = torch.ones(1, 2, dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)
    method.begin_task(1)
    optimizer = method.optimizer()
    for _ in range(STEPS):
        train_step(method, optimizer, x, y)
    return model, method, [(x, y)]


def test_the_path_of_gradient_descent_adds_up_to_the_fall_of_the_loss():
    """``omega = (2, 2)`` up to the step size: each coordinate's share of ``(2^2 + 4 1^2) / 2 = 4``.

    With ``q = 1 - rate h`` it is ``sum_k rate (h x_0 q^k)^2``, a geometric series.
    """
    model, method, data = descend()
    curvature, start = torch.tensor([1.0, 4.0]).double(), torch.tensor([2.0, 1.0]).double()
    q = 1 - RATE * curvature
    series = RATE * (curvature * start) ** 2 * (1 - q ** (2 * STEPS)) / (1 - q**2)
    torch.testing.assert_close(method.path["place"], series, rtol=1e-10, atol=0)
    assert float(method.path["place"].sum()) == pytest.approx(4.0, rel=0.02)
    method.after_task(data)
    wanted = method.path["place"] / ((model.place.detach() - method.start["place"]) ** 2 + 0.1)
    torch.testing.assert_close(method.importance["place"], wanted)
    with torch.no_grad():
        model.place.copy_(torch.tensor([0.5, -1.0]))
    moved = torch.tensor([0.5, -1.0]).double() - method.centre["place"]
    torch.testing.assert_close(method.penalty().detach(), (wanted * moved**2).sum())


def test_the_penalty_does_not_enter_the_path():
    """The path is made of gradients of the loss alone: with a huge penalty the weight hardly moves, and it is small."""
    model, method, data = descend(strength=1e2)
    method.after_task(data)
    method.begin_task(1)
    optimizer = method.optimizer()
    before, target = model.place.detach().clone(), torch.ones(1, 2, dtype=torch.float64)
    train_step(method, optimizer, data[0][0], target)
    slope = torch.tensor([1.0, 2.0]).double() * (before * torch.tensor([1.0, 2.0]).double() - 1.0)
    torch.testing.assert_close(method.path["place"], -slope * (model.place.detach() - before))


def test_importance_is_of_the_sum_over_the_examples_and_never_negative():
    """``N`` times the mean-loss path; a step that climbs counts as nothing."""
    model = Bowl()
    method = SynapticIntelligence(model, Gaussian(noise=1.0), optimizer=sgd(1e-3, maximize=True))
    x, y = torch.ones(7, 2, dtype=torch.float64), torch.zeros(7, 2, dtype=torch.float64)
    method.begin_task(7)
    train_step(method, method.optimizer(), x, y)
    slope = torch.tensor([2.0, 4.0]).double()
    torch.testing.assert_close(method.path["place"], -7 * slope * 1e-3 * slope, rtol=1e-10, atol=0)
    method.after_task([(x, y)])
    assert not method.importance["place"].any()


def test_gradients_of_several_weight_samples_are_averaged():
    model = network()
    method = SynapticIntelligence(
        model, Categorical(), optimizer=lambda m, n: vogn.VOGN(m, lr=1e-3, ess=n, mc_samples=2, variational=False)
    )
    task = classification()[0]
    method.begin_task(24)
    before = method.copy_of_weights()
    loss = Categorical()(model(task.x_train), task.y_train)
    slopes = dict(zip(before, torch.autograd.grad(loss, list(model.parameters())), strict=True))
    train_step(method, method.optimizer(), task.x_train, task.y_train)
    for name, p in model.named_parameters():
        torch.testing.assert_close(method.path[name], -24 * slopes[name] * (p.detach() - before[name]))


@pytest.mark.parametrize("heads", [1, 2])
def test_mas_is_the_sum_of_absolute_slopes(heads):
    model, tasks = network(heads), classification(heads)
    if heads > 1:
        model.head = 1
    method = MemoryAwareSynapses(model, Categorical(), strength=0.5)
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    total = {n: torch.zeros_like(p) for n, p in weights.items()}
    for x in tasks[0].x_train:
        size = functional_call(model, weights, (x[None],)).square().sum()
        slopes = torch.autograd.grad(size, list(weights.values()), allow_unused=True)
        for n, slope in zip(weights, slopes, strict=True):
            total[n] += 0 if slope is None else slope.abs()
    method.after_task(loader(tasks[0]))
    for n, found in method.importance.items():
        torch.testing.assert_close(found, total[n].detach())
    shake(model)
    wanted = sum(0.5 * (total[n] * (p - weights[n]) ** 2).sum() for n, p in model.named_parameters())
    assert float(wanted.detach()) > 1e-3
    torch.testing.assert_close(method.penalty(), wanted)


def test_ranges():
    for build, options, match in (
        (SynapticIntelligence, {"xi": 0.0}, "xi=0"),
        (SynapticIntelligence, {"strength": -1.0}, "strength=-1"),
        (MemoryAwareSynapses, {"strength": float("inf")}, "strength=inf"),
    ):
        with pytest.raises(ValueError, match=match):
            build(network(), Categorical(), **options)
