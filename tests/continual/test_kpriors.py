"""K-priors: exact for logistic regression with all inputs in memory, and the written formula with fewer."""

import itertools
import math

import pytest
import torch
from continual_cases import classification, loader, network, shake
from torch import nn

from tiny_models import fill, labels, normal
from vogn.continual import KPriors, select_head
from vogn.continual.memory import most_uncertain
from vogn.likelihoods import Categorical, Gaussian

PRIOR = 0.3


def minimise(objective, weight):
    """Newton's method, with half the step where it goes uphill, on a convex function; to the last digits."""
    for _ in range(60):
        (slope,) = torch.autograd.grad(objective(), weight, create_graph=True)
        rows = [torch.autograd.grad(part, weight, retain_graph=True)[0].flatten() for part in slope.flatten()]
        step = torch.linalg.solve(torch.stack(rows), slope.detach().flatten()).view_as(weight)
        before = float(objective().detach())
        with torch.no_grad():
            weight -= step
            while float(objective()) > before + 1e-12 * abs(before):
                step /= 2
                weight += step
        if float(step.norm()) < 1e-11:
            return
    raise AssertionError("Newton's method has not converged")


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))), ids=str)
def test_logistic_regressions_in_any_order_give_the_joint_one(order):
    """Three classes, all inputs in memory, strength 1: retraining on everything, without the labels of the past."""
    tasks = [(normal(n, 4, seed=n), labels(n, 3, seed=n)) for n in (9, 6, 12)]
    joint = fill(nn.Linear(4, 3, bias=False).double())
    x, y = (torch.cat(part) for part in zip(*tasks, strict=True))
    likelihood = Categorical()
    minimise(lambda: len(x) * likelihood(joint(x), y) + PRIOR / 2 * joint.weight.square().sum(), joint.weight)

    model = fill(nn.Linear(4, 3, bias=False).double(), 5)
    method = KPriors(model, likelihood, memory=None, prior_precision=PRIOR)
    for k in order:
        inputs, targets = tasks[k]
        method.begin_task(len(inputs))

        def objective(inputs=inputs, targets=targets):
            return len(inputs) * likelihood(model(inputs), targets) + method.penalty()

        minimise(objective, model.weight)
        method.after_task([(inputs[:4], targets[:4]), (inputs[4:], targets[4:])])
    torch.testing.assert_close(model.weight, joint.weight, rtol=1e-9, atol=1e-9)


def test_before_the_first_task_there_is_the_prior():
    model = network()
    method = KPriors(model, Categorical(), prior_precision=PRIOR)
    wanted = PRIOR / 2 * sum(p.square().sum() for p in model.parameters())
    torch.testing.assert_close(method.penalty(), wanted)
    assert float(KPriors(model, Categorical(), prior_precision=0.0).penalty()) == 0.0


@pytest.mark.parametrize("heads", [1, 2])
def test_the_written_formula_with_a_part_of_the_inputs(heads):
    """After two tasks: outputs and weights at the end of the second; every memory stands for the 24 of its task."""
    model, tasks = network(heads), classification(heads)
    method = KPriors(model, Categorical(), memory=6, strength=1.7, prior_precision=PRIOR)
    for task in tasks:
        select_head(model, task.head)
        method.after_task(loader(task))
        memorable = most_uncertain(loader(task), 6, task.head, lambda x: model(x).softmax(-1).detach())
        assert torch.equal(method.memories[-1].inputs, memorable.inputs)
        if task is tasks[0]:
            shake(model, 0.5)
    assert float(method.penalty().detach()) == pytest.approx(0.0, abs=1e-12)
    old_weights = [p.detach().clone() for p in model.parameters()]
    olds = []
    for task, memory in zip(tasks, method.memories, strict=True):
        select_head(model, task.head)
        olds.append(model(memory.inputs).softmax(-1).detach())
    shake(model, 0.5)
    moved = [p.detach() - old for p, old in zip(model.parameters(), old_weights, strict=True)]
    wanted = PRIOR / 2 * sum(float(difference.square().sum()) for difference in moved)
    for task, memory, old in zip(tasks, method.memories, olds, strict=True):
        select_head(model, task.head)
        new = model(memory.inputs).softmax(-1).detach()
        for p, q in zip(old.tolist(), new.tolist(), strict=True):
            wanted += 1.7 * 24 / 6 * sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    assert wanted > 0.1
    assert float(method.penalty().detach()) == pytest.approx(wanted, rel=1e-10)


def test_certain_outputs_cost_nothing_and_have_a_slope():
    """A probability that is zero in floating point: no NaN."""
    model = fill(nn.Linear(2, 2, bias=False).double())
    with torch.no_grad():
        model.weight.mul_(1e4)
    method = KPriors(model, Categorical(), memory=4, prior_precision=0.0)
    x, y = normal(4, 2), torch.tensor([0, 1, 0, 1])
    method.after_task([(x, y)])
    assert (method.memories[0].outputs == 0).any()
    (slope,) = torch.autograd.grad(method.penalty(), model.weight)
    assert float(method.penalty().detach()) == 0.0 and torch.isfinite(slope).all()


def test_ranges():
    model = network()
    for options, match in (
        ({"memory": 0}, "memory=0"),
        ({"strength": -1.0}, "strength=-1"),
        ({"prior_precision": float("inf")}, "prior_precision=inf"),
    ):
        with pytest.raises(ValueError, match=match):
            KPriors(model, Categorical(), **options)
    with pytest.raises(TypeError, match="give Categorical, not Gaussian"):
        KPriors(model, Gaussian(noise=1.0))
    with pytest.raises(ValueError, match="is empty"):
        KPriors(model, Categorical()).after_task([])
