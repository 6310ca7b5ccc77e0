"""GGT against the dense root of its window, from singular values."""

import pytest
import torch

from vogn import GGT
from vogn.likelihoods import Categorical
from window_oracle import network, replay, weights

DIMENSIONS = 31
EYE = torch.eye(DIMENSIONS, dtype=torch.float64)
LR, EPS, ESS = 0.01, 1e-2, 60.0


def ggt(model, **options):
    defaults = {"lr": LR, "ess": ESS, "damping": EPS, "weight_decay": 0.0, "window": 4, "seed": 3, "momentum": 0.0}
    return GGT(model, **(defaults | options))


def columns(seen, window, beta):
    """``[g_t, beta g_{t-1}, beta^2 g_{t-2}, ...]``."""
    return torch.stack([g * beta**age for age, g in enumerate(reversed(seen[-window:]))], 1)


def dense_step(window, *, beta=1.0, eps=EPS, momentum=0.0, wd=0.0, pinv=False):
    """[(G G^T)^1/2 + (wd + eps) I]^-1 (m_hat + wd mean)."""
    average = [torch.zeros(DIMENSIONS, dtype=torch.float64)]

    def direction(seen, gradient, mean):
        average[0] = momentum * average[0] + (1 - momentum) * gradient
        m = average[0] / (1 - momentum ** len(seen)) + wd * mean
        left, values, _ = torch.linalg.svd(columns(seen, window, beta), full_matrices=False)
        if pinv:
            kept = values.square() >= eps
            return left[:, kept] @ ((left[:, kept].T @ m) / values[kept])
        return torch.linalg.solve((left * values) @ left.T + (wd + eps) * EYE, m)

    return direction


@pytest.mark.parametrize("beta", [1.0, 0.9])
@pytest.mark.parametrize("variational", [True, False])
def test_it_is_the_dense_root_of_the_sum_over_its_window(beta, variational):
    model = network()
    options = {"momentum": 0.9, "weight_decay": 0.5, "curvature_decay": beta**2, "variational": variational}
    step = dense_step(4, beta=beta, momentum=0.9, wd=0.5)
    replay(ggt(model, **options), model, step, steps=10, lr=LR)


def test_the_pseudo_inverse_drops_what_is_not_in_the_window():
    model = network()
    opt = ggt(model, pinv=True, momentum=0.9, damping=1e-3, variational=False)
    replay(opt, model, dense_step(4, eps=1e-3, momentum=0.9, pinv=True), steps=9, lr=LR)


def test_the_pseudo_inverse_needs_a_cut(tools):
    model = network()
    opt = ggt(model, pinv=True, damping=0.0, variational=False)
    with pytest.raises(ValueError, match="block '0.weight': a pseudo-inverse cuts at damping=0: it must be positive"):
        tools.train(opt, model, 1)


def test_a_window_of_one_gradient_and_no_eps_takes_steps_of_length_lr():
    """g / (|g| + eps); a smaller eps magnifies the rounding of g itself, which is not quite in its own span."""
    model, eps = network(), 1e-6

    def direction(seen, gradient, mean):
        step = gradient / (gradient.norm() + eps)
        assert abs(float(step.norm()) - 1) < 1e-5
        return step

    replay(ggt(model, window=1, damping=eps, variational=False), model, direction, steps=5, lr=LR)


def test_a_large_eps_takes_the_steps_of_gradient_descent():
    model = network()
    eps = 1e12

    def direction(seen, gradient, mean):
        return gradient / eps

    replay(ggt(model, damping=eps, lr=LR * eps, variational=False), model, direction, steps=5, lr=LR * eps)


@pytest.mark.parametrize(("beta", "steps"), [(1.0, 2), (1.0, 8), (0.9, 3), (0.9, 8)])
def test_the_posterior_is_that_of_the_average_without_the_root(beta, steps):
    """ess (B G G^T / sum of weights + wd I): the sum and the root are for the step only."""
    model, gradients = network(), []
    opt = ggt(model, variational=False, weight_decay=0.02, curvature_decay=beta**2, batch_size=8.0)

    def direction(seen, gradient, mean):
        gradients[:] = seen
        left, values, _ = torch.linalg.svd(8**0.5 * columns(seen, 4, beta), full_matrices=False)
        return torch.linalg.solve((left * values) @ left.T + (0.02 + EPS) * EYE, gradient + 0.02 * mean)

    replay(opt, model, direction, steps=steps, lr=LR)
    root = columns(gradients, 4, beta)
    mass = sum(beta ** (2 * age) for age in range(root.shape[1]))
    (precision,) = opt.posterior().precision_matrices().values()
    torch.testing.assert_close(precision, ESS * (8.0 * root @ root.T / mass + 0.02 * EYE), rtol=1e-9, atol=1e-10)


def test_its_draws_have_the_covariance_of_the_posterior(tools):
    """Linear in the noise: the root is read off from unit vectors, and a draw is the root times the stream."""
    from vogn.linalg.noise import normal as draw

    model = network()
    opt = ggt(model, weight_decay=0.02)
    tools.train(opt, model, 6)
    (block,) = opt.posterior().blocks
    mean = weights(model)
    root = torch.stack([block.root(e.reshape(-1, 1)).flatten() for e in EYE], 1)
    torch.testing.assert_close(root @ root.T, torch.linalg.inv(block.precision_matrix()), rtol=1e-9, atol=1e-12)
    with opt.sampled_params():
        where = {"seed": 3, "stream": "weights", "step": 6, "sample": 0, "name": block.name}
        eps = draw((DIMENSIONS, 1), dtype=torch.float64, **where).flatten()
        torch.testing.assert_close(weights(model), mean + root @ eps, rtol=1e-10, atol=1e-12)
        Categorical()(model(tools.batch()[0]), tools.batch()[1]).backward()
