"""Gauss-Newton through the Gram matrix of the output Jacobian."""

import torch
from torch import nn

import vogn
from vogn.capture import oracle
from vogn.likelihoods import Gaussian


def wide(hidden=64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, hidden), nn.Tanh(), nn.Linear(hidden, 1)).double()


def data(n, seed=0):
    source = torch.Generator().manual_seed(seed)
    return (torch.randn(n, k, generator=source, dtype=torch.float64) for k in (3, 1))


def build(model, damping=1e-12, **options):
    settings = {"weight_decay": 0.0, "curvature_decay": 0.0, "variational": False} | options
    return vogn.GramGaussNewton(model, damping=damping, **settings)


def step(opt, model, x, y):
    opt.zero_grad()
    with opt.sampled_params():
        Gaussian(noise=1.0)(model(x), y).backward()
    opt.step()


def test_a_linear_model_has_no_residual_after_one_step_from_any_start():
    x, y = data(3)
    model = nn.Linear(3, 1, bias=True).double()
    step(build(model), model, x, y)
    assert float((model(x) - y).abs().max()) < 1e-8


def test_the_damped_step_is_the_dense_one():
    x, y = data(5)
    model = wide(8)
    start = nn.utils.parameters_to_vector(model.parameters()).detach()
    jacobian = oracle.jacobian(model, x)[:, 0]
    residual = (model(x) - y).detach()
    step(build(model, damping=0.3), model, x, y)
    damped = jacobian.T @ jacobian / 5 + 0.3 * torch.eye(len(start)).double()
    dense = torch.linalg.solve(damped, jacobian.T @ residual / 5)
    moved = start - nn.utils.parameters_to_vector(model.parameters()).detach()
    torch.testing.assert_close(moved, dense.flatten(), rtol=1e-9, atol=1e-9)


def test_an_over_parameterised_regression_converges_quadratically():
    x, y = data(10)
    model = wide(200)
    opt, errors = build(model), []
    for _ in range(6):
        errors.append(float((model(x) - y).detach().norm()))
        step(opt, model, x, y)
    large = [(a, b) for a, b in zip(errors, errors[1:], strict=False) if a > 1e-5]
    assert len(large) >= 3 and errors[-1] < 1e-7
    constant = large[0][1] / large[0][0] ** 2
    assert all(b <= 3 * constant * a**2 + 1e-9 for a, b in large), errors
