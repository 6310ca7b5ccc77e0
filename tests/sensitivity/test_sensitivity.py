"""Leave-one-out, groups and influence against refitting."""

import math

import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

import vogn
from tiny_models import normal
from vogn.likelihoods import Bernoulli, Categorical, Gaussian
from vogn.sensitivity import influence, leave_one_out, without

NOISE, DELTA, N, D = 0.6, 0.8, 14, 3


def ridge(x, y):
    """The minimum of the regularised loss, and its exact posterior."""
    model = nn.Linear(D, y.shape[1], bias=False).double()
    precision = x.T @ x / NOISE**2 + DELTA * torch.eye(D).double()
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(precision, x.T @ y / NOISE**2).T)
    return model, vogn.laplace(model, Gaussian(noise=NOISE), [(x, y)], structure="dense", prior_precision=DELTA)


@pytest.fixture
def regression():
    x = normal(N, D, seed=1)
    return x, x @ normal(D, 2, seed=2) + NOISE * normal(N, 2, seed=3)


def kept(n, removed):
    return [k for k in range(n) if k not in removed]


def test_the_leverage_form_is_refitting_for_a_linear_model(regression):
    x, y = regression
    model, posterior = ridge(x, y)
    found = leave_one_out(model, posterior, x, y)
    for k in range(N):
        refitted = ridge(x[kept(N, [k])], y[kept(N, [k])])[0](x[k])
        torch.testing.assert_close(found.outputs_without[k], refitted, rtol=1e-9, atol=1e-10)
        loss = Gaussian(noise=NOISE).terms(refitted.unsqueeze(0), y[k : k + 1])
        torch.testing.assert_close(found.nll[k : k + 1], loss.detach(), rtol=1e-8, atol=1e-9)
    assert bool(((found.leverage > 0) & (found.leverage < 1)).all())


def test_the_two_forms_by_hand(regression):
    """``f + v r`` and ``f + v r / (1 - v / s^2)`` with the scalar variance of a regression."""
    x, y = regression[0], regression[1][:, :1]
    model, posterior = ridge(x, y)
    v = torch.einsum("nd,de,ne->n", x, torch.linalg.inv(x.T @ x / NOISE**2 + DELTA * torch.eye(D).double()), x)
    f = model(x).detach()[:, 0]
    r = (f - y[:, 0]) / NOISE**2
    first = leave_one_out(model, posterior, x, y, order="first")
    torch.testing.assert_close(first.outputs_without[:, 0], f + v * r)
    torch.testing.assert_close(
        leave_one_out(model, posterior, x, y).outputs_without[:, 0], f + v * r / (1 - v / NOISE**2)
    )
    torch.testing.assert_close(first.leverage, v / NOISE**2)
    torch.testing.assert_close(first.sensitivity, (v * r).abs())


@pytest.mark.parametrize("group", [[0], [1, 5, 6]])
def test_a_group_is_taken_out_exactly_from_a_linear_model(regression, group):
    x, y = regression
    model, posterior = ridge(x, y)
    moved = without(model, posterior, x[group], y[group])
    wanted = ridge(x[kept(N, group)], y[kept(N, group)])[0].weight.detach()
    torch.testing.assert_close(moved["weight"], wanted, rtol=1e-9, atol=1e-10)
    gradient = (model(x[group]) - y[group]).T @ x[group] / NOISE**2
    covariance = torch.linalg.inv(x.T @ x / NOISE**2 + DELTA * torch.eye(D).double())
    first = without(model, posterior, x[group], y[group], order="first")
    torch.testing.assert_close(first["weight"], (model.weight + gradient @ covariance).detach())


def newton(x, y, weight, start=None, classes=3, delta=1.0):
    """Softmax regression in which every example has a weight, to rounding: ``(weight, bias)``."""
    size = classes * x.shape[1]
    flat = torch.zeros(size + classes).double() if start is None else start

    def objective(flat):
        terms = Categorical().terms(x @ flat[:size].view(classes, -1).T + flat[size:], y)
        return (weight * terms).sum() + 0.5 * delta * flat.square().sum()

    for _ in range(40):
        gradient = torch.autograd.functional.jacobian(objective, flat)
        if float(gradient.norm()) < 1e-11:
            break
        flat = flat - torch.linalg.solve(torch.autograd.functional.hessian(objective, flat), gradient)
    assert float(gradient.norm()) < 1e-8
    model = nn.Linear(x.shape[1], classes).double()
    with torch.no_grad():
        model.weight.copy_(flat[:size].view(classes, -1))
        model.bias.copy_(flat[size:])
    return model


def all_but(n, k):
    return torch.where(torch.arange(n) == k, 0.0, 1.0).double()


@pytest.fixture(scope="module")
def labelled():
    x = normal(40, 2, seed=4)
    y = (2.0 * x[:, 0] + 0.7 * normal(40, seed=5)).gt(0).long() + (x[:, 1] > 0.5).long()
    model = newton(x, y, torch.ones(40).double())
    posterior = vogn.laplace(model, Categorical(), [(x, y)], structure="dense", prior_precision=1.0)
    refits = [newton(x, y, all_but(40, k)) for k in range(40)]
    return x, y, model, posterior, refits


def test_leave_one_out_of_a_softmax_regression_is_near_refitting(labelled):
    x, y, model, posterior, refits = labelled
    wanted = torch.stack([refit(row) for refit, row in zip(refits, x, strict=True)]).detach()
    errors = {
        order: (leave_one_out(model, posterior, x, y, order=order).outputs_without - wanted).abs().mean().item()
        for order in ("first", "leverage")
    }
    moved = (wanted - model(x)).abs().mean().item()
    assert errors["leverage"] < 0.15 * moved and errors["leverage"] < 0.5 * errors["first"]
    exact = torch.stack([Categorical().terms(f.unsqueeze(0), t.unsqueeze(0)) for f, t in zip(wanted, y, strict=True)])
    found = leave_one_out(model, posterior, x, y)
    gap = float(exact.mean() - found.training_nll.mean())
    assert gap > 0.05 and abs(float(found.mean_nll - exact.mean())) < 0.1 * gap


def test_influence_ranks_training_examples_as_refitting_does(labelled):
    x, y, model, posterior, refits = labelled
    test_x, test_y = normal(6, 2, seed=9), torch.tensor([0, 1, 0, 1, 2, 0])
    found = influence(model, posterior, (x, y), (test_x, test_y))
    before = Categorical().terms(model(test_x), test_y)
    wanted = torch.stack([Categorical().terms(refit(test_x), test_y) - before for refit in refits], 1).detach()
    assert found.shape == (6, 40)
    assert all(spearmanr(a, b).statistic > 0.95 for a, b in zip(found.numpy(), wanted.numpy(), strict=True))


def test_influence_is_the_derivative_of_the_loss_in_an_examples_weight(labelled):
    """Against a refit in which one example counts a thousandth less."""
    x, y, model, posterior, _ = labelled
    test = normal(3, 2, seed=9), torch.tensor([0, 1, 2])
    found = influence(model, posterior, (x, y), test)[:, 7]
    weight, terms = 1.0 - 1e-3 * (1.0 - all_but(40, 7)), Categorical().terms
    change = (terms(newton(x, y, weight)(test[0]), test[1]) - terms(model(test[0]), test[1])).detach() / 1e-3
    torch.testing.assert_close(found, change, rtol=5e-3, atol=1e-5)


def test_the_temperature_of_the_posterior_is_undone(regression):
    x, y = regression
    model, posterior = ridge(x, y)
    wanted = leave_one_out(model, posterior, x, y)
    found = leave_one_out(model, posterior.tempered(0.1), x, y, temperature=0.1)
    torch.testing.assert_close(found.outputs_without, wanted.outputs_without)
    cold = without(model, posterior.tempered(0.1), x[:2], y[:2], temperature=0.1)
    torch.testing.assert_close(cold, without(model, posterior, x[:2], y[:2]))
    pair = influence(model, posterior.tempered(0.1), (x, y), (x, y), temperature=0.1)
    torch.testing.assert_close(pair, influence(model, posterior, (x, y), (x, y)))


def test_one_output_and_bernoulli_labels_have_no_last_dimension():
    x = normal(12, 2, seed=1)
    model = nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double()
    y = (x[:, 0] > 0).double()
    posterior = vogn.laplace(model, Bernoulli(), [(x, y)], structure="dense")
    found = leave_one_out(model, posterior, x, y, batch_size=5)
    p, v = torch.sigmoid(model(x)).detach(), found.variance[:, 0, 0]
    moved = model(x).detach() + v * (p - y) / (1 - p * (1 - p) * v)
    torch.testing.assert_close(found.outputs_without[:, 0], moved)
    column = leave_one_out(model[0], vogn.laplace(model[0], Bernoulli(), [(x, y[:, None])]), x, y[:, None])
    assert column.nll.shape == (12,)


def test_a_posterior_that_does_not_contain_an_example_falls_back_to_first_order(regression):
    x, y = regression
    model, posterior = ridge(x, y)
    wide = posterior.tempered(50.0)
    with pytest.warns(UserWarning, match="leverage of 1 or more"):
        found = leave_one_out(model, wide, x, y)
    first = leave_one_out(model, wide, x, y, order="first")
    beyond = found.leverage >= 1
    assert bool(beyond.any()) and bool(torch.isfinite(found.nll).all())
    torch.testing.assert_close(found.outputs_without[beyond], first.outputs_without[beyond])
    with pytest.raises(ValueError, match="leverage .* less than 1"):
        without(model, wide, x[:3], y[:3])


def test_it_works_in_the_middle_of_a_run_and_leaves_the_model_as_it_was():
    x, y = normal(60, 2, seed=1, dtype=torch.float32), (normal(60, 2, seed=1)[:, 0] > 0).long()
    y[:4] = 1 - y[:4]
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Tanh(), nn.Linear(8, 2))
    opt = vogn.VOGN(model, lr=0.1, ess=60, weight_decay=1 / 60)
    before = None
    for step in range(60):
        opt.zero_grad()
        with opt.sampled_params():
            Categorical()(model(x), y).backward()
        opt.step()
        if step in (20, 59):
            state = {key: value.clone() for key, value in model.state_dict().items()}
            before = leave_one_out(model, opt.posterior(), x, y, order="first")
            torch.testing.assert_close(model.state_dict(), state, rtol=0, atol=0)
            assert model.training and bool((before.nll.isfinite()).all())
    assert set(before.ranking()[:4].tolist()) & {0, 1, 2, 3}


def test_wrong_input_is_named(regression):
    x, y = regression
    model, posterior = ridge(x, y)
    with pytest.raises(ValueError, match="order='second'"):
        leave_one_out(model, posterior, x, y, order="second")
    with pytest.raises(ValueError, match="temperature=0"):
        leave_one_out(model, posterior, x, y, temperature=0)
    with pytest.raises(ValueError, match="targets have shape"):
        leave_one_out(model, posterior, x, y[:3])
    with pytest.raises(ValueError, match="NaN"):
        leave_one_out(model, posterior, x, torch.full_like(y, math.nan))
    with pytest.raises(ValueError, match="14 inputs but 15 targets"):
        influence(model, posterior, (x, torch.cat([y, y[:1]])), (x, y))
    with pytest.raises(ValueError, match="point mass"):
        leave_one_out(model, vogn.GaussianPosterior([], posterior.mean(), likelihood=posterior.likelihood), x, y)
    with pytest.raises(ValueError, match="likelihood"):
        leave_one_out(model, vogn.GaussianPosterior(posterior.blocks, posterior.mean()), x, y)
    with pytest.raises(ValueError, match="one vector of outputs"):
        leave_one_out(model, posterior, x.unsqueeze(1), y)


def test_leave_one_out_loss_tracks_the_loss_on_new_data_over_priors():
    """A softmax regression with few examples and useless inputs, from overfitted to underfitted."""
    x, fresh = normal(100, 20, seed=13), normal(4000, 20, seed=113)
    y, fresh_y = ((z[:, 0] + 0.5 * normal(len(z), seed=63)).gt(0).long() for z in (x, fresh))
    leave, new, training = [], [], []
    for delta in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0):
        model = newton(x, y, torch.ones(100).double(), classes=2, delta=delta)
        posterior = vogn.laplace(model, Categorical(), [(x, y)], structure="dense", prior_precision=delta)
        found = leave_one_out(model, posterior, x, y)
        leave.append(float(found.mean_nll))
        training.append(float(found.training_nll.mean()))
        new.append(float(Categorical()(model(fresh), fresh_y)))
    torch.testing.assert_close(torch.tensor(leave), torch.tensor(new), atol=0.03, rtol=0)
    assert spearmanr(leave, new).statistic > 0.95
    assert spearmanr(training, new).statistic < 0.0  # which falls where the other rises
