"""Quadratic penalties: non-zero, the closed form, and exact sequential Bayes on linear-Gaussian models."""

import itertools

import pytest
import torch
from continual_cases import LIKELIHOOD, classification, joint_posterior, loader, network, regressions, shake
from torch import nn
from torch.func import functional_call

from tiny_models import fill
from vogn.continual import OnlineLaplace, kronecker_laplace, online_ewc
from vogn.likelihoods import Categorical

PRIOR = 0.7


def minimised(method, x, y):
    """Weights at the minimum of ``N loss + penalty``, a quadratic: one Newton step with autograd's derivatives."""
    (weight,) = method.model.parameters()
    flat = weight.detach().flatten().clone()

    def objective(vector):
        with torch.no_grad():
            weight.copy_(vector.view_as(weight))
        loss = len(x) * method.likelihood(method.model(x), y) + method.penalty()
        (slope,) = torch.autograd.grad(loss, weight)
        return slope.flatten()

    start = objective(flat)
    columns = [objective(flat + unit) - start for unit in torch.eye(len(flat), dtype=flat.dtype)]
    curvature = torch.stack(columns, 1)
    with torch.no_grad():
        weight.copy_((flat - torch.linalg.solve(curvature, start)).view_as(weight))


def precision_of(method):
    """The Hessian of the penalty, from differences of its gradient, which are exact."""
    (weight,) = method.model.parameters()
    flat = weight.detach().flatten().clone()
    slopes = []
    for vector in (flat, *(flat + unit for unit in torch.eye(len(flat), dtype=flat.dtype))):
        with torch.no_grad():
            weight.copy_(vector.view_as(weight))
        slopes.append(torch.autograd.grad(method.penalty(), weight)[0].flatten())
    with torch.no_grad():
        weight.copy_(flat.view_as(weight))
    return torch.stack([slope - slopes[0] for slope in slopes[1:]], 1)


@pytest.mark.parametrize("combine", ["list", "nearest"])
@pytest.mark.parametrize("structure", ["dense", "kronecker"])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_any_order_of_tasks_gives_the_joint_posterior(structure, combine, order):
    """With one output the output factor is a number, so sums of Kronecker products are products."""
    tasks = regressions()
    precision, mean = joint_posterior(tasks, PRIOR)
    model = fill(nn.Linear(4, 1, bias=False).double())
    method = OnlineLaplace(model, LIKELIHOOD, structure=structure, prior_precision=PRIOR, combine=combine)
    for k in order:
        x, y = tasks[k]
        minimised(method, x, y)
        method.after_task([(x[:3], y[:3]), (x[3:], y[3:])])
    torch.testing.assert_close(model.weight.detach(), mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(precision_of(method), precision, rtol=1e-8, atol=1e-8)


def test_diagonal_is_exact_for_orthogonal_features():
    tasks = [(torch.diag(x[:4, 0]), y[:4]) for x, y in regressions()]
    precision, mean = joint_posterior(tasks, PRIOR)
    model = fill(nn.Linear(4, 1, bias=False).double())
    method = online_ewc(model, LIKELIHOOD, prior_precision=PRIOR, fisher="ggn")
    for x, y in tasks:
        minimised(method, x, y)
        method.after_task([(x, y)])
    torch.testing.assert_close(model.weight.detach(), mean, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(precision_of(method), precision, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("structure", ["kronecker", "diagonal", "dense"])
def test_second_derivatives_are_those_of_the_quadratic(structure):
    model = fill(nn.Linear(4, 3).double())
    method = OnlineLaplace(model, Categorical(), structure=structure)
    for task in classification():
        method.after_task(loader(task))
    shake(model, 0.5)
    by_differences = []
    start = [p.detach().clone() for p in model.parameters()]

    def gradient(create_graph=False):
        slopes = torch.autograd.grad(method.penalty(), list(model.parameters()), create_graph=create_graph)
        return torch.cat([slope.flatten() for slope in slopes])

    at_start = gradient(create_graph=True)
    twice = [
        torch.cat([s.flatten() for s in torch.autograd.grad(part, list(model.parameters()), retain_graph=True)])
        for part in at_start
    ]
    for p, old in zip(model.parameters(), start, strict=True):
        for k in range(p.numel()):
            with torch.no_grad():
                p.view(-1)[k] += 1.0
            by_differences.append(gradient() - at_start.detach())
            with torch.no_grad():
                p.copy_(old)
    torch.testing.assert_close(torch.stack(twice), torch.stack(by_differences), rtol=1e-8, atol=1e-8)
    assert float(torch.stack(twice).diagonal().min()) > 0


def squares_of_scores(model, task):
    """The diagonal of the summed empirical Fisher information, example by example."""
    weights = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    total = {n: torch.zeros_like(p) for n, p in weights.items()}
    for x, y in zip(task.x_train, task.y_train, strict=True):
        loss = Categorical()(functional_call(model, weights, (x[None],)), y[None])
        for n, slope in zip(weights, torch.autograd.grad(loss, list(weights.values()), allow_unused=True), strict=True):
            total[n] += 0 if slope is None else slope**2
    return total


@pytest.mark.filterwarnings("error::vogn.errors.PosteriorWarning")  # that the other head sees nothing is no news
@pytest.mark.parametrize("heads", [1, 2])
def test_ewc_is_the_written_formula_and_not_zero(heads):
    """``strength / 2 sum_j F_j (theta_j - theta*_j)^2`` with ``F = decay F_1 + F_2``, sums over all examples."""
    model, (first, second) = network(heads), classification(heads)
    method = online_ewc(model, Categorical(), strength=3.0, decay=0.9, fisher="empirical")
    assert float(method.penalty()) == 0.0 and not method.penalty().requires_grad
    fisher = {}
    for task in (first, second):
        if heads > 1:
            model.head = task.head
        own = squares_of_scores(model, task)
        fisher = {n: 0.9 * fisher[n] + own[n] if fisher else own[n] for n in own}
        centre = {n: p.detach().clone() for n, p in model.named_parameters()}
        method.after_task(loader(task))
        assert float(method.penalty().detach()) == pytest.approx(0.0, abs=1e-12)
        shake(model)
    wanted = sum(1.5 * (fisher[n] * (p - centre[n]) ** 2).sum() for n, p in model.named_parameters())
    assert float(wanted.detach()) > 1e-2
    torch.testing.assert_close(method.penalty(), wanted, rtol=1e-10, atol=0)
    slopes = torch.autograd.grad(method.penalty(), list(model.parameters()))
    for (n, p), slope in zip(model.named_parameters(), slopes, strict=True):
        torch.testing.assert_close(slope, (3.0 * fisher[n] * (p - centre[n])).detach(), rtol=1e-10, atol=1e-12)


def test_kronecker_list_is_the_dense_sum_of_the_products():
    """Layer by layer against ``sum_t S_t (x) A_t`` from inputs and output Hessians, for the last layer by hand."""
    model, tasks = network(), classification()
    method = kronecker_laplace(model, Categorical(), prior_precision=0.3, strength=2.0)
    total = 0.0
    for task in tasks:
        with torch.no_grad():
            inputs = torch.cat([model[:2](task.x_train), torch.ones(24, 1, dtype=torch.float64)], 1)
            p = model(task.x_train).softmax(-1)
        a = inputs.T @ inputs / 24
        s = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
        total = total + 24 * torch.kron(s, a)
        centre = {n: q.detach().clone() for n, q in model.named_parameters()}
        method.after_task(loader(task, 24))
        shake(model)
    with torch.no_grad():  # only the last layer differs from the centre
        for n, q in model.named_parameters():
            if not n.startswith("2."):
                q.copy_(centre[n])
    moved = torch.cat([model[2].weight - centre["2.weight"], (model[2].bias - centre["2.bias"])[:, None]], 1).flatten()
    wanted = moved @ total @ moved + 0.15 * moved @ moved
    torch.testing.assert_close(method.penalty(), wanted, rtol=1e-10, atol=0)


def test_nearest_is_no_more_than_one_term_and_not_the_list():
    model, tasks = network(), classification()
    methods = [kronecker_laplace(model, Categorical(), combine=combine) for combine in ("list", "nearest")]
    for task in tasks:
        for method in methods:
            method.after_task(loader(task))
        shake(model)
    assert [len(method.terms) for method in methods] == [2, 1]
    exact, near = (float(method.penalty().detach()) for method in methods)
    assert exact != near and near == pytest.approx(exact, rel=0.2)


@pytest.mark.parametrize("build", [online_ewc, kronecker_laplace])
def test_state_comes_back(build):
    model, tasks = network(), classification()
    method = build(model, Categorical())
    method.after_task(loader(tasks[0]))
    other = build(model, Categorical())
    other.load_state_dict(method.state_dict())
    shake(model)
    assert float(method.penalty().detach()) == float(other.penalty().detach()) > 0
    for each in (method, other):
        each.after_task(loader(tasks[1]))
    shake(model)
    assert torch.equal(method.penalty(), other.penalty())


def test_what_is_refused():
    model = network()
    for options, match in (
        ({"strength": -1.0}, "strength=-1"),
        ({"decay": 1.5}, "decay=1.5"),
        ({"prior_precision": float("nan")}, "prior_precision=nan"),
        ({"combine": "sum"}, "combine='sum'"),
    ):
        with pytest.raises(ValueError, match=match):
            OnlineLaplace(model, Categorical(), **options)
    with pytest.raises(ValueError, match="loader of the task is empty"):
        online_ewc(model, Categorical()).after_task([])
    with pytest.raises(ValueError, match="0 examples"):
        online_ewc(model, Categorical()).begin_task(0)
