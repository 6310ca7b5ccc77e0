"""The Kalman filter: covariance form, exact linear regression, any order."""

import pytest
import torch
from torch import nn

import vogn
from dense_curvature import jacobian_rows
from vogn.likelihoods import Categorical, Gaussian
from vogn.optim.steps import KalmanSchedule

PRIOR = 2.0


def linear(bias=False):
    torch.manual_seed(0)
    return nn.Linear(3, 1, bias=bias).double()


def data(n=12):
    source = torch.Generator().manual_seed(0)
    x = torch.randn(n, 3, generator=source, dtype=torch.float64)
    return x, x @ torch.randn(3, 1, generator=source, dtype=torch.float64)


def feed(opt, model, likelihood, x, y):
    opt.zero_grad()
    with opt.sampled_params():
        likelihood(model(x), y).backward()
    opt.step()


def exact(start, x, y, noise):
    """Posterior of a linear regression whose prior is centred at the start."""
    precision = PRIOR * torch.eye(3, dtype=torch.float64) + x.T @ x / noise**2
    mean = torch.linalg.solve(precision, PRIOR * start + (x.T @ y).flatten() / noise**2)
    return mean, precision


@pytest.mark.parametrize("sizes", [(12,), (1,) * 12, (3, 4, 5), (5, 4, 3)])
@pytest.mark.parametrize("order", ["forward", "backward"])
def test_one_pass_over_a_linear_model_gives_the_exact_posterior_in_any_order(sizes, order):
    model, (x, y) = linear(), data()
    start = model.weight.detach().flatten().clone()
    mean, precision = exact(start, x, y, 0.5)
    if order == "backward":
        x, y = x.flip(0), y.flip(0)
    opt = vogn.KalmanNaturalGradient(model, weight_decay=PRIOR, variational=False)
    for inputs, targets in zip(x.split(sizes), y.split(sizes), strict=True):
        feed(opt, model, Gaussian(noise=0.5), inputs, targets)
    torch.testing.assert_close(model.weight.detach().flatten(), mean, rtol=1e-10, atol=1e-10)
    (found,) = opt.posterior().precision_matrices().values()
    torch.testing.assert_close(found, precision, rtol=1e-10, atol=1e-10)


def test_each_step_is_that_of_the_extended_kalman_filter_in_covariance_form(tools):
    """A nonlinear classifier, one example at a time: ``K = P H^T (H P H^T + R)^-1``, ``R`` by its inverse."""
    model = tools.network()
    opt = vogn.KalmanNaturalGradient(model, weight_decay=PRIOR, variational=False)
    size = sum(p.numel() for p in model.parameters())
    covariance = torch.eye(size, dtype=torch.float64) / PRIOR
    x, y = tools.batch(seed=0)
    for k in range(6):
        inputs, targets = x[k : k + 1], y[k : k + 1]
        named = jacobian_rows(model, inputs)
        p = torch.softmax(model(inputs).detach(), -1)[0]
        residual = nn.functional.one_hot(targets[0], len(p)).double() - p
        before = tools.weights(model)
        feed(opt, model, Categorical(), inputs, targets)
        (block,) = opt.posterior().blocks
        h = block.layout.pack(named).flatten(2)[0]  # (outputs, size)
        # H^T R^-1 H is the Fisher information; in covariance form with the Hessian's square root L, R^-1 = L L^T
        root = torch.diag(p.sqrt()) - torch.outer(p, p.sqrt())
        rows = root.T @ h
        gain = covariance @ rows.T @ torch.linalg.inv(torch.eye(len(p)).double() + rows @ covariance @ rows.T)
        covariance = covariance - gain @ rows @ covariance
        expected = block.layout.pack(before).flatten() + covariance @ h.T @ residual
        torch.testing.assert_close(block.layout.pack(tools.weights(model)).flatten(), expected, rtol=1e-10, atol=1e-10)
        (precision,) = opt.posterior().precision_matrices().values()
        torch.testing.assert_close(torch.linalg.inv(precision), covariance, rtol=1e-9, atol=1e-11)


def test_fading_multiplies_the_evidence_and_keeps_the_prior():
    model, (x, y) = linear(), data()
    opt = vogn.KalmanNaturalGradient(model, weight_decay=PRIOR, curvature_decay=0.5, variational=False)
    evidence = torch.zeros(3, 3, dtype=torch.float64)
    for inputs, targets in zip(x.split(4), y.split(4), strict=True):
        feed(opt, model, Gaussian(noise=0.5), inputs, targets)
        evidence = 0.5 * evidence + inputs.T @ inputs / 0.25
    (found,) = opt.posterior().precision_matrices().values()
    torch.testing.assert_close(found, evidence + PRIOR * torch.eye(3, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_a_refused_step_forgets_the_batch():
    model, (x, y) = linear(), data()
    opt = vogn.KalmanNaturalGradient(model, weight_decay=PRIOR, variational=False)
    feed(opt, model, Gaussian(noise=0.5), x[:6], y[:6])
    before = {key: value for key, value in opt.param_groups[0].items() if key != "params"}
    with pytest.raises(vogn.errors.NonFiniteStatisticsError):
        feed(opt, model, Gaussian(noise=0.5), x[6:] * 1e200, y[6:])
    assert {key: value for key, value in opt.param_groups[0].items() if key != "params"} == before
    feed(opt, model, Gaussian(noise=0.5), x[6:], y[6:])
    assert opt.param_groups[0]["ess"] == 12


def test_the_prior_precision_is_the_product_of_sample_size_and_weight_decay():
    for options in ({"weight_decay": PRIOR}, {"ess": 100.0, "weight_decay": PRIOR / 100}):
        model, (x, y) = linear(), data()
        opt = vogn.KalmanNaturalGradient(model, variational=False, **options)
        feed(opt, model, Gaussian(noise=0.5), x, y)
        assert opt.param_groups[0]["prior_precision"] == pytest.approx(PRIOR)
        assert opt.param_groups[0]["weight_decay"] == pytest.approx(PRIOR / 12)


def test_any_error_in_a_step_undoes_the_schedule(monkeypatch):
    """Not only numbers that are refused: whatever a step of the chain raises."""
    model, (x, y) = linear(), data()
    opt = vogn.KalmanNaturalGradient(model, weight_decay=PRIOR, variational=False)
    feed(opt, model, Gaussian(noise=0.5), x[:6], y[:6])
    before = {key: value for key, value in opt.param_groups[0].items() if key != "params"}

    def fail(self, updates, context):
        raise vogn.errors.MissingCurvatureError("no curvature")

    with monkeypatch.context() as patch:
        patch.setattr(KalmanSchedule, "__call__", fail)
        with pytest.raises(vogn.errors.MissingCurvatureError, match="no curvature"):
            feed(opt, model, Gaussian(noise=0.5), x[6:], y[6:])
    assert {key: value for key, value in opt.param_groups[0].items() if key != "params"} == before
    feed(opt, model, Gaussian(noise=0.5), x[6:], y[6:])
    assert opt.param_groups[0]["ess"] == 12
