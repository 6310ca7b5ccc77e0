"""Sample-space natural gradient against dense solves, and damping that follows the quadratic model."""

import pytest
import torch
from torch import nn

import vogn
from dense_curvature import empirical, exact, watch
from vogn.capture.statistics import GGN, Empirical
from vogn.likelihoods import Categorical, Gaussian

DAMPING, DECAY = 0.03, 0.02


def step_of(tools, fisher):
    """The step of SMW from one batch, and what a dense solve with the same matrix gives."""
    model, twin = tools.network(), tools.network()
    x, y = tools.batch(seed=0)
    opt = vogn.SMW(
        model, 1.0, ess=100.0, weight_decay=DECAY, damping=DAMPING, momentum=0.0, fisher=fisher, variational=False
    )
    start = tools.weights(model)
    opt.zero_grad()
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
    opt.step()
    (block,) = opt.posterior().blocks

    def flat(named):
        return block.layout.pack(named).flatten()

    statistic = {"empirical": Empirical(), "ggn": GGN()}[fisher]
    reference = watch(twin, statistic)
    with reference.sampled_params():
        Categorical()(twin(x), y).backward()
    reference.step()
    (matrix,) = exact(twin, statistic, reference.posterior(), x, y).values()
    dense = matrix + (DAMPING + DECAY) * torch.eye(len(matrix), dtype=torch.float64)
    moved = flat(start) - flat(tools.weights(model))
    return moved, torch.linalg.solve(dense, flat(gradient) + DECAY * flat(start))


@pytest.mark.parametrize("fisher", ["empirical", "ggn"])
def test_the_step_is_the_dense_solve_over_the_whole_model(tools, fisher):
    moved, dense = step_of(tools, fisher)
    torch.testing.assert_close(moved, dense, rtol=1e-10, atol=1e-12)


def test_part_of_the_batch_measures_the_curvature_of_its_first_examples(tools):
    model, twin = tools.network(), tools.network()
    x, y = tools.batch(seed=0)
    opt = vogn.SMW(model, 1.0, ess=100.0, weight_decay=1.0, curvature_examples=3, variational=False)
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    (block,) = (opt.step(), opt.posterior())[1].blocks
    # the posterior's precision was measured at the start
    start = watch(twin, Empirical())
    with start.sampled_params():
        Categorical()(twin(x[:3]), y[:3]).backward()
    start.step()
    (expected,) = empirical(twin, start.posterior(), x[:3], y[:3]).values()
    precision = opt.posterior().precision_matrices()[block.name]
    torch.testing.assert_close(precision, 100.0 * (expected + torch.eye(len(expected)).double()), rtol=1e-9, atol=1e-9)


def regression(n=20, seed=0):
    source = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=source, dtype=torch.float64)
    noise = 0.3 * torch.randn(n, 1, generator=source, dtype=torch.float64)
    return x, x @ torch.randn(4, 1, generator=source, dtype=torch.float64) + noise


def test_a_linear_least_squares_problem_takes_one_step():
    x, y = regression()
    model = nn.Linear(4, 1, bias=False).double()
    opt = vogn.SMW(
        model, 1.0, damping=1e-12, weight_decay=0.0, momentum=0.0, fisher="ggn", variational=False, adapt_damping=True
    )
    opt.step(vogn.Objective(model, Gaussian(noise=1.0), x, y))
    torch.testing.assert_close(model.weight.detach().T, torch.linalg.lstsq(x, y).solution, rtol=1e-8, atol=1e-8)
    assert opt.param_groups[0]["damping"] == pytest.approx(1e-10)  # the model is exact: as low as it may go


def test_damping_falls_where_the_model_is_right_and_rises_where_it_is_not():
    x, y = regression()
    for factor, expected in ((1.0, 0.1 / 1.5), (-1.0, 0.1 * 2.0)):

        class Wrong(Gaussian):  # typed final, but a test may: the loss goes the other way than its gradient says
            def terms(self, outputs, targets):
                terms = super().terms(outputs, targets)
                return terms if torch.is_grad_enabled() else factor * terms  # noqa: B023

        model = nn.Linear(4, 1, bias=False).double()
        opt = vogn.SMW(
            model, 0.5, damping=0.1, weight_decay=0.0, momentum=0.0, fisher="ggn", variational=False,
            adapt_damping=True, boost=2.0, drop=1 / 1.5,
        )  # fmt: skip
        opt.step(vogn.Objective(model, Wrong(noise=1.0), x, y))
        assert opt.param_groups[0]["damping"] == pytest.approx(expected)
        assert opt.diagnostics()["damping_factor"] == pytest.approx(expected / 0.1)


def test_the_promise_is_that_of_the_quadratic_model():
    """On a quadratic loss the ratio is 1 to rounding at any rate, so that the damping falls."""
    x, y = regression()
    for rate in (0.1, 1.0, 1.5):
        model = nn.Linear(4, 1, bias=False).double()
        opt = vogn.SMW(
            model, rate, damping=0.2, weight_decay=0.1, momentum=0.0, fisher="ggn", variational=False,
            adapt_damping=True, epsilon=1e-9,
        )  # fmt: skip
        opt.step(vogn.Objective(model, Gaussian(noise=1.0), x, y))
        assert opt.param_groups[0]["damping"] == pytest.approx(0.2 / 1.01, rel=1e-12)


def test_comparing_losses_needs_an_objective(tools):
    model = tools.network()
    opt = vogn.SMW(model, ess=100.0, adapt_damping=True)
    x, y = tools.batch(seed=0)
    before = tools.weights(model)
    with opt.sampled_params():
        Categorical()(model(x), y).backward()
    with pytest.raises(TypeError, match=r"LevenbergMarquardt evaluates the loss again: call opt.step\(vogn.Objective"):
        opt.step()
    assert all(torch.equal(before[name], after) for name, after in tools.weights(model).items())


def test_an_objective_is_the_loop(tools):
    x, y = tools.batch(seed=0)
    results = []
    for use in (True, False):
        model = tools.network()
        opt = vogn.SMW(model, ess=100.0)
        for _ in range(3):
            if use:
                opt.step(vogn.Objective(model, Categorical(), x, y))
                continue
            opt.zero_grad()
            with opt.sampled_params():
                Categorical()(model(x), y).backward()
            opt.step()
        results.append(tools.weights(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_an_objective_leaves_buffers_and_the_random_state_and_repeats_its_dropout():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    x, y = torch.randn(16, 3), torch.randint(0, 2, (16,))
    objective = vogn.Objective(model, Categorical(), x, y)
    state, running = torch.get_rng_state(), model[1].running_mean.clone()
    first, second = objective.loss(), objective.loss()
    assert torch.equal(first, second) and torch.equal(first, objective())  # the same masks in training
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(model[1].running_mean, running)  # moved by the call alone, once
    running = model[1].running_mean.clone()
    objective.loss()
    assert torch.equal(model[1].running_mean, running)
    assert not torch.equal(first, vogn.Objective(model, Categorical(), x, y).loss())  # another objective, other masks
