"""Power series of Hessian products against dense Hessians of the loss."""

import math

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import vogn
from vogn.errors import MissingCurvatureError, NotPositiveDefiniteError, UnsupportedObservationError
from vogn.likelihoods import Categorical, Gaussian

LR, DECAY, DAMPING = 0.7, 0.02, 0.9
COMMON = {"lr": LR, "weight_decay": DECAY, "damping": DAMPING, "momentum": 0.0, "variational": False}


def lissa(model, **options):
    return vogn.LiSSA(model, products="hessian", **(COMMON | options))


def flat(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def dense_system(model, x, y, likelihood):
    """``H + (weight_decay + damping) I`` and ``g + weight_decay m``."""
    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()], strict=True)

    def loss(vector):
        parts = vector.split([math.prod(shape) for shape in shapes])
        weights = {n: part.view(shape) for n, part, shape in zip(names, parts, shapes, strict=True)}
        return likelihood(torch.func.functional_call(model, weights, (x,)), y)

    point = flat(model)
    hessian = torch.autograd.functional.hessian(loss, point)
    gradient = torch.autograd.functional.jacobian(loss, point)
    return hessian + (DECAY + DAMPING) * torch.eye(len(point)).double(), gradient + DECAY * point


def test_products_are_those_of_the_dense_hessian(tools):
    model = nn.Sequential(tools.network(), nn.BatchNorm1d(3).double(), nn.Dropout(0.3))
    x, y = tools.batch(seed=0)
    objective = vogn.Objective(model, Categorical(), x, y)
    parameters = list(model.parameters())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    product, n = objective.hessian(parameters), sum(p.numel() for p in parameters)
    columns = []
    for unit in torch.eye(n, dtype=torch.float64):
        parts = unit.split([p.numel() for p in parameters])
        found = product([part.view_as(p) for part, p in zip(parts, parameters, strict=True)])
        columns.append(torch.cat([part.flatten() for part in found]))
    dense = torch.stack(columns)
    torch.testing.assert_close(dense, dense.T, rtol=1e-10, atol=1e-12)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in parameters)
    step, point = 1e-5, flat(model)  # central differences of the gradient of the same objective, dropout masks included
    direction = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ends = []
    for sign in (1, -1):
        nn.utils.vector_to_parameters(point + sign * step * direction, parameters)
        objective()
        ends.append(torch.cat([p.grad.flatten() for p in parameters]))
    torch.testing.assert_close(dense @ direction, (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("partition", ["model", "layer"])
@pytest.mark.parametrize("depth", [0, 3, 12])
def test_a_step_is_the_truncated_series_over_the_whole_model(tools, partition, depth):
    model = tools.network()
    x, y = tools.batch(seed=0)
    system, v = dense_system(model, x, y, Categorical())
    eye, start = torch.eye(len(v)).double(), flat(model)
    series = sum(torch.linalg.matrix_power(eye - system / 2.5, j) for j in range(depth + 1)) / 2.5
    opt = lissa(model, depth=depth, scale=2.5, partition=partition)
    opt.step(vogn.Objective(model, Categorical(), x, y))
    torch.testing.assert_close(start - flat(model), LR * (series @ v), rtol=1e-10, atol=1e-13)


def test_the_error_of_the_series_is_within_its_bound(tools):
    """``|u - H^-1 g| <= (1 - mu)^(depth + 1) |H^-1 g|`` with the Hessian scaled to a norm of 1."""
    model = tools.network()
    x, y = tools.batch(seed=0)
    system, v = dense_system(model, x, y, Categorical())
    values, start, depth = torch.linalg.eigvalsh(system), flat(model), 25
    assert float(values[0]) > 0
    lissa(model, depth=depth, scale=float(values[-1])).step(vogn.Objective(model, Categorical(), x, y))
    found, exact = (start - flat(model)) / LR, torch.linalg.solve(system, v)
    error = float((found - exact).norm() / exact.norm())
    assert 0.0 < error <= (1 - float(values[0] / values[-1])) ** (depth + 1)


def test_without_a_scale_the_largest_eigenvalue_is_found_and_followed(tools):
    model = tools.network()
    opt, before = lissa(model, depth=60, lr=0.05), 0.0
    for step in range(5):
        x, y = tools.batch(seed=0)
        system, v = dense_system(model, x, y, Categorical())
        largest, start = float(torch.linalg.eigvalsh(system)[-1]), flat(model)
        opt.step(vogn.Objective(model, Categorical(), x, y))
        total = opt.diagnostics()["series_scale"] * (step + 1)  # diagnostics are means over the steps
        scale, before = total - before, total
        assert 0.9 * largest <= scale <= 1.26 * largest
        exact = torch.linalg.solve(system, v)
        torch.testing.assert_close((start - flat(model)) / 0.05, exact, rtol=1e-3, atol=1e-4 * float(exact.norm()))


def test_parts_of_the_batch_leave_the_truncated_series_unbiased(tools):
    """A z-test over 700 steps with one example per term, as in the paper."""
    model, depth, scale = tools.network(), 2, 6.0
    x, y = tools.batch(seed=0)
    system, v = dense_system(model, x, y, Categorical())
    eye, start = torch.eye(len(v)).double(), flat(model)
    series = sum(torch.linalg.matrix_power(eye - system / scale, j) for j in range(depth + 1)) / scale
    opt, draws = lissa(model, depth=depth, scale=scale, rows_per_term=1), []
    for _ in range(700):
        nn.utils.vector_to_parameters(start.clone(), model.parameters())
        opt.step(vogn.Objective(model, Categorical(), x, y))
        draws.append((start - flat(model)) / LR)
    found = torch.stack(draws)
    z = (found.mean(0) - series @ v) / (found.std(0) / len(draws) ** 0.5)
    assert float(z.abs().max()) < 4.5 and float(found.std(0).max()) > 1e-3 * float(v.norm())


def test_a_least_squares_problem_is_solved_in_one_step(tools):
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 3, generator=source).double(), torch.randn(12, 1, generator=source).double()
    model = tools.fill(nn.Linear(3, 1, bias=False)).double()
    opt = lissa(model, lr=1.0, weight_decay=0.0, damping=0.0, depth=3000)
    opt.step(vogn.Objective(model, Gaussian(noise=1.0), x, y))
    torch.testing.assert_close(model.weight.detach().T, torch.linalg.lstsq(x, y).solution, rtol=1e-8, atol=1e-9)


def test_negative_curvature_and_a_small_scale_are_refused_and_nothing_changes(tools):
    x, y = tools.batch(seed=0)
    for options in ({"damping": 0.0, "depth": 1500, "scale": 0.8}, {"depth": 60, "scale": 0.3}):
        model = tools.network()
        before, opt = tools.weights(model), lissa(model, **options)
        system, _ = dense_system(model, x, y, Categorical())
        values = torch.linalg.eigvalsh(system) - DAMPING + options.get("damping", DAMPING)
        assert float(values[0]) < 0 or float(values[-1]) > 2 * options["scale"]
        with pytest.raises(NotPositiveDefiniteError, match="the Neumann series of the Hessian diverges"):
            opt.step(vogn.Objective(model, Categorical(), x, y))
        assert all(torch.equal(before[name], weight) for name, weight in tools.weights(model).items())


def test_it_wants_an_objective_and_gives_no_posterior(tools):
    model = tools.network()
    x, y = tools.batch(seed=0)
    opt = lissa(model)
    with pytest.raises(TypeError, match=r"HessianNeumann evaluates the loss again: call opt\.step\(vogn\.Objective"):
        tools.train(opt, model, 1)
    opt.step(vogn.Objective(model, Categorical(), x, y))
    with pytest.raises(MissingCurvatureError, match="keep no curvature"):
        opt.posterior()
    opt.param_groups[0]["variational"] = True
    with pytest.raises((MissingCurvatureError, ValueError)), opt.sampled_params():
        pass


def test_a_resumed_run_is_the_uninterrupted_one(tools):
    def steps(opt, model, first):
        for seed in range(first, first + 3):
            opt.step(vogn.Objective(model, Categorical(), *tools.batch(seed=seed)))

    model, twin = tools.network(), tools.network()
    opt = lissa(model, rows_per_term=2, momentum=0.9)
    steps(opt, model, 0)
    saved = tools.through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    steps(opt, model, 3)
    twin.load_state_dict(saved["model"])
    resumed = lissa(twin, rows_per_term=2, momentum=0.9)
    resumed.load_state_dict(saved["opt"])
    steps(resumed, twin, 3)
    tools.assert_same(tools.everything(opt, model), tools.everything(resumed, twin))


def test_what_cannot_be_differentiated_twice_is_named(tools):
    class Attends(nn.Module):
        def forward(self, x):
            x = x[:, None, :, None].repeat(1, 1, 1, 8)
            return nn.functional.scaled_dot_product_attention(x, x, x)[:, 0, :, 0]

    model = nn.Sequential(tools.network(), Attends())
    objective = vogn.Objective(model, Categorical(), *tools.batch(seed=0))
    with pytest.raises(UnsupportedObservationError, match="SDPBackend.MATH"), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        lissa(model).step(objective)
    with sdpa_kernel(SDPBackend.MATH):
        lissa(model).step(objective)
