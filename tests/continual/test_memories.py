"""Penalties on stored examples: replay, function-space distance, FROMP."""

import pytest
import torch
from continual_cases import classification, loader, network, shake
from torch import nn
from torch.func import functional_call, jacrev

from tiny_models import labels, normal
from vogn.continual import FROMP, FunctionDistance, KPriors, Replay, select_head
from vogn.continual.memory import at_random, most_uncertain
from vogn.likelihoods import Categorical, Gaussian

BUILDERS = {"replay": Replay, "l2": FunctionDistance, "fromp": FROMP, "kpriors": KPriors}


def test_a_random_memory_holds_examples_of_the_task():
    x, y = normal(20, 3), labels(20, 4)
    memory = at_random([(x[:9], y[:9]), (x[9:], y[9:])], 6, seed=1, head=2)
    assert len(memory) == 6 and (memory.head, memory.examples) == (2, 20)
    rows = [int((x == row).all(1).nonzero()) for row in memory.inputs]
    assert len(set(rows)) == 6 and memory.targets.tolist() == y[rows].tolist()
    other = at_random([(x, y)], 6, seed=2, head=0)
    assert not torch.equal(memory.inputs, other.inputs)
    assert torch.equal(at_random([(x, y)], None, seed=0, head=0).inputs, x)


def test_memorable_examples_are_the_most_uncertain_of_every_class():
    x, y = normal(30, 3, seed=5), torch.arange(30) % 3
    logits = normal(30, 3, seed=6)
    memory = most_uncertain([(x, y)], 6, 0, lambda inputs: logits.softmax(-1))
    p = logits.softmax(-1)
    scores = (p * (1 - p)).sum(-1)
    wanted = sorted(
        n for c in range(3) for n in sorted(range(c, 30, 3), key=lambda n: -float(scores[n]))[:2]
    )
    assert torch.equal(memory.inputs, x[wanted]) and torch.equal(memory.targets, y[wanted])
    odd = most_uncertain([(x, y)], 4, 0, lambda inputs: logits.softmax(-1))
    assert len(odd) == 4 and torch.bincount(odd.targets).max() == 2


@pytest.mark.parametrize("heads", [1, 3])
def test_joint_training_is_the_loss_of_all_earlier_examples(heads):
    model, tasks = network(heads), classification(heads, tasks=3)
    method = Replay(model, Categorical(), memory=None, batch_size=1000)
    assert float(method.penalty()) == 0.0
    for task in tasks[:2]:
        select_head(model, task.head)
        method.after_task(loader(task))
    select_head(model, tasks[2].head)
    wanted = 0.0
    for task in tasks[:2]:
        outputs = model.heads[task.head](model.body(task.x_train)) if heads > 1 else model(task.x_train)
        wanted = wanted + 24 * nn.functional.cross_entropy(outputs, task.y_train)
    torch.testing.assert_close(method.penalty(), wanted)
    assert heads == 1 or model.head == 2


def test_replayed_batches_average_to_the_loss_of_the_memory():
    """Over many steps the mean of the estimates is the memory's loss, to within four standard errors."""
    model, task = network(), classification()[0]
    method = Replay(model, Categorical(), memory=20, batch_size=5)
    method.after_task(loader(task))
    memory = method.memories[0]
    whole = float(24 * Categorical()(model(memory.inputs), memory.targets).detach())
    found = []
    for _ in range(400):
        found.append(float(method.penalty().detach()))
        assert float(method.penalty().detach()) == found[-1]  # until the next step
        method.after_step()
    found = torch.tensor(found)
    assert len(set(found.tolist())) > 300
    assert abs(float(found.mean()) - whole) < 4 * float(found.std()) / 20


@pytest.mark.parametrize("heads", [1, 2])
def test_function_distance_is_the_mean_norm(heads):
    model, tasks = network(heads), classification(heads)
    method = FunctionDistance(model, Categorical(), memory=7, strength=2.0)
    method.begin_task(24)
    method.after_task(loader(tasks[0]))
    memory = method.memories[0]
    old = model(memory.inputs).softmax(-1).detach()
    select_head(model, tasks[1].head)
    assert float(method.penalty().detach()) == pytest.approx(0.0, abs=1e-4)
    slopes = torch.autograd.grad(method.penalty(), list(model.parameters()), allow_unused=True)
    assert all(not slope.any() for slope in slopes if slope is not None)  # finite and zero where nothing has moved
    shake(model, 0.5)
    select_head(model, tasks[0].head)
    new = model(memory.inputs).softmax(-1)
    select_head(model, tasks[1].head)
    wanted = 2.0 * 24 * torch.stack([(a - b).norm() for a, b in zip(new, old, strict=True)]).mean()
    assert float(wanted.detach()) > 0.5
    torch.testing.assert_close(method.penalty(), wanted, rtol=1e-8, atol=0)


def written_kernels(model, memory, curvature, delta, jitter, head):
    """``J_k Sigma J_k^T + jitter`` with the slopes of each probability by automatic differentiation."""
    select_head(model, head)
    weights = {n: p.detach() for n, p in model.named_parameters()}
    slopes = jacrev(lambda w: functional_call(model, w, (memory.inputs,)).softmax(-1))(weights)
    kernels = []
    for k in range(memory.outputs.shape[1]):
        kernel = jitter * torch.eye(len(memory), dtype=torch.float64)
        for n, slope in slopes.items():
            rows = slope[:, k].flatten(1)
            kernel = kernel + rows @ torch.diag(1 / (curvature[n].flatten() + delta)) @ rows.T
        kernels.append(kernel)
    return kernels


@pytest.mark.parametrize("heads", [1, 2])
def test_fromp_is_the_written_formula(heads):
    """After two tasks: new kernels and old probabilities for both memories, Gauss-Newton diagonals summed over data."""
    model, tasks = network(heads), classification(heads)
    method = FROMP(model, Categorical(), memory=6, strength=1.7, prior_precision=0.2, jitter=1e-3)
    curvature = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for task in tasks:
        select_head(model, task.head)
        weights = {n: p.detach() for n, p in model.named_parameters()}
        slopes = jacrev(lambda w, x=task.x_train: functional_call(model, w, (x,)))(weights)
        p = model(task.x_train).softmax(-1).detach()
        hessian = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        for n, slope in slopes.items():
            flat = slope.flatten(2)
            curvature[n] += torch.einsum("nkp,nkl,nlp->p", flat, hessian, flat).view_as(curvature[n])
        method.after_task(loader(task))
        if task is tasks[0]:
            shake(model, 0.5)
    assert float(method.penalty().detach()) == pytest.approx(0.0, abs=1e-12)
    for n, found in method.curvature.items():
        torch.testing.assert_close(found, curvature[n].detach())
    kernels, olds = [], []
    for task, memory in zip(tasks, method.memories, strict=True):
        kernels.append(written_kernels(model, memory, curvature, 0.2, 1e-3, task.head))
        olds.append(model(memory.inputs).softmax(-1).detach())
    shake(model, 0.5)
    wanted = 0.0
    for task, memory, kernel, old in zip(tasks, method.memories, kernels, olds, strict=True):
        select_head(model, task.head)
        moved = model(memory.inputs).softmax(-1) - old
        wanted = wanted + sum(0.85 * moved[:, k] @ torch.linalg.solve(kernel[k], moved[:, k]) for k in range(3))
    assert float(wanted.detach()) > 0.1
    torch.testing.assert_close(method.penalty(), wanted, rtol=1e-7, atol=0)
    ours = torch.autograd.grad(method.penalty(), list(model.parameters()), allow_unused=True)
    theirs = torch.autograd.grad(wanted, list(model.parameters()), allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def test_fromp_with_as_many_examples_as_weights_is_the_weight_prior():
    """With an invertible ``J_k`` the Hessian ``J^T (J Sigma J^T)^-1 J`` of the penalty is ``Sigma^-1``.

    Two classes and one logit that moves: probability 1 is a function of three weights, the kernels of both classes are
    equal, and the penalty, a sum over both, has twice that Hessian.
    """

    class Logit(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1, bias=False)

        def forward(self, x):
            moving = self.linear(x)
            return torch.cat([torch.zeros_like(moving), moving], 1)

    model = Logit().double()
    x, y = normal(3, 3, seed=2), torch.tensor([0, 1, 1])
    method = FROMP(model, Categorical(), memory=3, prior_precision=0.5, jitter=1e-12)
    method.after_task([(x, y)])
    precision = torch.diag(method.curvature["linear.weight"].flatten() + 0.5)
    weight = model.linear.weight

    def slope():
        return torch.autograd.grad(method.penalty(), weight, create_graph=True)[0].flatten()

    hessian = torch.stack([torch.autograd.grad(part, weight, retain_graph=True)[0].flatten() for part in slope()])
    torch.testing.assert_close(hessian, 2 * precision, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_state_comes_back(name):
    model, tasks = network(2), classification(2)
    methods = [BUILDERS[name](model, Categorical(), memory=6) for _ in range(2)]
    methods[0].begin_task(24)
    methods[0].after_task(loader(tasks[0]))
    methods[0].after_step()
    methods[1].load_state_dict(methods[0].state_dict())
    shake(model)
    model.head = 1
    assert torch.equal(methods[0].penalty(), methods[1].penalty())
    for method in methods:
        method.after_task(loader(tasks[1]))
    shake(model)
    assert float(methods[0].penalty().detach()) == float(methods[1].penalty().detach()) > 0


def test_ranges():
    model = network()
    for build, options, match in (
        (Replay, {"memory": 0}, "memory=0"),
        (Replay, {"batch_size": 0}, "batch_size=0"),
        (FunctionDistance, {"memory": 0}, "memory=0"),
        (FunctionDistance, {"strength": -1.0}, "strength=-1"),
        (FROMP, {"jitter": 0.0}, "jitter=0"),
        (FROMP, {"prior_precision": -1.0}, "prior_precision=-1"),
        (FROMP, {"strength": float("nan")}, "strength=nan"),
    ):
        with pytest.raises(ValueError, match=match):
            build(model, Categorical(), **options)
    with pytest.raises(TypeError, match="give Categorical, not Gaussian"):
        FROMP(model, Gaussian(noise=1.0))
