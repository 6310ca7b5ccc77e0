"""M-FAC against the dense matrix of its window."""

import pytest
import torch

from vogn import MFAC
from window_oracle import network, replay, window_outer

DIMENSIONS = 31
EYE = torch.eye(DIMENSIONS, dtype=torch.float64)
LR, DAMPING, DT, ESS = 0.05, 1e-3, 0.02, 60.0


def mfac(model, **options):
    defaults = {"lr": LR, "ess": ESS, "damping": DAMPING, "weight_decay": DT, "window": 5, "seed": 3}
    return MFAC(model, **(defaults | options))


def dense_step(window, *, batch_size=1.0, momentum=0.0, decay=1.0):
    """v <- momentum v + (1 - momentum) (lam I + B/m sum g g^T)^-1 (g + wd mean), the newest gradient in the sum."""
    velocity = [torch.zeros(DIMENSIONS, dtype=torch.float64)]

    def direction(seen, gradient, mean):
        kept = [g * decay ** (age / 2) for age, g in enumerate(reversed(seen))][:window]
        fisher = batch_size / window * window_outer(kept, window) + (DAMPING + DT) * EYE
        velocity[0] = momentum * velocity[0] + (1 - momentum) * torch.linalg.solve(fisher, gradient + DT * mean)
        return velocity[0]

    return direction


@pytest.mark.parametrize("inverse", ["cholesky", "static", "dynamic"])
@pytest.mark.parametrize("variational", [True, False])
def test_it_is_the_dense_window_of_mini_batch_gradients(inverse, variational):
    """While the window fills and after it has wrapped; momentum after preconditioning."""
    model = network()
    opt = mfac(model, inverse=inverse, variational=variational, momentum=0.8)
    replay(opt, model, dense_step(5, momentum=0.8), steps=12, lr=LR)


@pytest.mark.parametrize("options", [{"batch_size": 8.0}, {"curvature_decay": 0.8}])
def test_its_options_do_what_they_say(options):
    model = network()
    step = dense_step(5, batch_size=options.get("batch_size", 1.0), decay=options.get("curvature_decay", 1.0))
    replay(mfac(model, **options), model, step, steps=9, lr=LR)


def test_several_samples_and_micro_batches_enter_as_their_mean_gradient():
    model = network()
    replay(mfac(model, mc_samples=2), model, dense_step(5), steps=7, lr=LR, contexts=2, micro=3)


def test_the_posterior_is_that_of_the_window_times_the_batch_size():
    model = network()
    opt = mfac(model, batch_size=8.0, variational=False)
    gradients = []

    def direction(seen, gradient, mean):
        gradients[:] = seen
        return dense_step(5, batch_size=8.0)(seen, gradient, mean)

    replay(opt, model, direction, steps=8, lr=LR)
    (precision,) = opt.posterior().precision_matrices().values()
    expected = ESS * (8.0 / 5 * window_outer(gradients, 5) + DT * EYE)
    torch.testing.assert_close(precision, expected, rtol=1e-9, atol=1e-10)


def test_with_the_batch_size_rates_and_dampings_in_proportion_are_the_same_step(tools):
    results = []
    for factor in (1.0, 8.0):
        model = network()
        options = {"lr": LR * factor, "damping": DAMPING * factor, "batch_size": factor, "weight_decay": 0.0}
        tools.train(mfac(model, variational=False, **options), model, 8)
        results.append(tools.weights(model))
    for name, weight in results[0].items():
        torch.testing.assert_close(results[1][name], weight, rtol=1e-10, atol=1e-11)


def test_a_run_resumed_in_the_middle_of_the_ring_is_the_same_run(tools):
    model, other = network(), network()
    opt, resumed = mfac(model), mfac(other)
    tools.train(opt, model, 8)
    resumed.load_state_dict(tools.through_a_file(opt.state_dict()))
    other.load_state_dict(model.state_dict())
    tools.train(opt, model, 4, start=8)
    tools.train(resumed, other, 4, start=8)
    tools.assert_same(tools.everything(opt, model), tools.everything(resumed, other))


def test_bare_parameters_share_one_window_too(tools):
    """The gradient needs no layers; only the order of the parameters in the block is another one."""
    models = network(), network()
    for model, params in zip(models, (models[0], list(models[1].parameters())), strict=True):
        tools.train(mfac(params, variational=False), model, 7)
    for name, weight in tools.weights(models[0]).items():
        torch.testing.assert_close(tools.weights(models[1])[name], weight, rtol=1e-9, atol=1e-11)
