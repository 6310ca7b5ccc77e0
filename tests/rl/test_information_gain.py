"""KL divergences in closed form against known numbers, torch, and Bayesian linear regression."""

import pytest
import torch
from rl_cases import Corridor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from vogn.models import mlp
from vogn.predict import jacobian
from vogn.rl import Environments, InformationGain, PredictionError, diagonal_kl, information_gain, kronecker_kl

F64 = torch.float64


def scalar(*values):
    return [torch.tensor([value], dtype=F64) for value in values]


def spd(size, seed):
    root = torch.randn(size, size, dtype=F64, generator=torch.Generator().manual_seed(seed))
    return root @ root.T + torch.eye(size, dtype=F64)


def test_diagonal_kl_has_the_known_values():
    assert float(diagonal_kl(*scalar(1.0, 0.5, 0.0, 1.0))) == pytest.approx(0.818147, abs=1e-6)
    rho = torch.tensor([0.5], dtype=F64).expm1().log()  # the standard deviation is log(1 + e^rho)
    moved = torch.nn.functional.softplus(rho + 2e-3)
    mean, sd, _, _ = scalar(0.0, 0.5, 0.0, 0.0)
    exact = diagonal_kl(mean + 1e-3, moved, mean, sd)
    assert float(exact) == pytest.approx(4.4788e-6, rel=1e-4)
    quadratic = 0.5 * (1e-6 / 0.25 + 2e-3**2 * 2 * torch.sigmoid(rho) ** 2 / 0.25)
    assert float(quadratic) == pytest.approx(4.4771e-6, rel=1e-4)


def test_diagonal_kl_is_that_of_torch():
    m, n = torch.randn(2, 7, dtype=F64)
    s, t = torch.rand(2, 7, dtype=F64) + 0.1
    torch.testing.assert_close(diagonal_kl(m, s, n, t), kl_divergence(Normal(m, s), Normal(n, t)).sum())


def test_kronecker_kl_is_that_of_the_dense_gaussians():
    m, n = torch.randn(2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
    a, b, s, t = spd(4, 1), spd(4, 2), spd(3, 3), spd(3, 4)
    p = MultivariateNormal(m.flatten(), precision_matrix=torch.kron(s, a))
    q = MultivariateNormal(n.flatten(), precision_matrix=torch.kron(t, b))
    torch.testing.assert_close(kronecker_kl(m, a, s, n, b, t), kl_divergence(p, q))
    assert float(kronecker_kl(m, a, s, m, a, s)) == pytest.approx(0.0, abs=1e-12)


def test_gain_is_the_kl_of_the_updated_posterior_of_a_linear_model():
    sigma, slopes = spd(5, 0), torch.randn(3, 2, 5, dtype=F64, generator=torch.Generator().manual_seed(1))
    residual = torch.randn(3, 2, dtype=F64, generator=torch.Generator().manual_seed(2))
    variance = slopes @ sigma @ slopes.transpose(1, 2)
    found = information_gain(variance, residual, 0.6)
    prior = MultivariateNormal(torch.zeros(5, dtype=F64), sigma)
    for n in range(3):
        precision = torch.linalg.inv(sigma) + slopes[n].T @ slopes[n] / 0.36
        mean = torch.linalg.solve(precision, slopes[n].T @ residual[n] / 0.36)
        after = MultivariateNormal(mean, precision_matrix=precision)
        assert float(found[n]) == pytest.approx(float(kl_divergence(after, prior)), rel=1e-9)


def test_expected_gain_is_the_mutual_information():
    variance = spd(2, 5)[None]
    total = variance[0] + 0.25 * torch.eye(2, dtype=F64)
    draws = MultivariateNormal(torch.zeros(2, dtype=F64), total)
    torch.manual_seed(0)
    residual = draws.sample((40_000,))
    gains = information_gain(variance.expand(40_000, 2, 2), residual, 0.5)
    expected = 0.5 * torch.logdet(torch.eye(2, dtype=F64) + variance[0] / 0.25)
    error = float(gains.std()) / 40_000**0.5
    assert abs(float(gains.mean() - expected)) < 4 * error


def moves(environments, steps, actions=1):
    rows = []
    for number in range(steps):
        given = torch.full((environments.count, actions), (-1.0) ** number)
        step, _ = environments.step(given)
        rows.append((step.observations, given, step.following))
    return (torch.cat(part) for part in zip(*rows, strict=True))


@pytest.mark.parametrize("method", ["vogn", "kfac"])
def test_bonus_is_the_gain_under_the_dense_covariance_of_the_posterior(method):
    environments = Environments(lambda: Corridor(True), count=2)
    bonus = InformationGain(environments, method=method, scale=0.5, hidden=(4,), steps=3)
    x, a, y = moves(environments, 10)
    assert bonus.rewards(x, a, y).tolist() == [0.0] * 20  # nothing learnt yet
    bonus.learn(x, a, y)
    inputs, changes = bonus._scaled(bonus._input(x, a), y - x)
    found = bonus.raw(inputs, changes)
    posterior = bonus.posterior()
    model = mlp((4, 4, 3), "tanh")
    model.load_state_dict(posterior.mean())
    outputs, slopes = jacobian(model, dict(model.named_parameters()), inputs)
    dense = posterior.to_dense()
    rows = posterior.flatten(slopes)
    for n in range(20):
        variance = rows[n] @ dense @ rows[n].T
        expected = information_gain(variance[None], (changes - outputs)[n : n + 1], 0.1)
        assert float(found[n]) == pytest.approx(float(expected), rel=2e-3)
    scaled = bonus.rewards(x, a, y)
    torch.testing.assert_close(scaled, 0.5 * found / found.median())


def test_seen_transitions_are_worth_less_than_new_ones():
    environments = Environments(lambda: Corridor(True), count=2)
    bonus = InformationGain(environments, hidden=(8,), steps=20)
    x, a, y = moves(environments, 60)
    bonus.learn(x, a, y)
    first = bonus.raw(*bonus._scaled(bonus._input(x, a), y - x)).median()
    for _ in range(10):
        bonus.learn(x, a, y)
    again = bonus.raw(*bonus._scaled(bonus._input(x, a), y - x)).median()
    far = bonus.raw(*bonus._scaled(bonus._input(x + 3.0, a), y - x)).median()
    assert float(again) < 0.5 * float(first)
    assert float(far) > 2 * float(again)


def test_prediction_error_is_the_squared_error():
    environments = Environments(lambda: Corridor(True))
    bonus = PredictionError(environments, hidden=(4,))
    x, a, y = moves(environments, 10)
    bonus.learn(x, a, y)
    inputs, changes = bonus._scaled(bonus._input(x, a), y - x)
    expected = ((changes - bonus.model(inputs)) ** 2).sum(1).detach()
    torch.testing.assert_close(bonus.raw(inputs, changes), expected)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"variance must be \(N, K, K\)"):
        information_gain(torch.zeros(2, 3, 3), torch.zeros(2, 2), 1.0)
    with pytest.raises(ValueError, match="noise=0"):
        information_gain(torch.zeros(2, 3, 3), torch.zeros(2, 3), 0.0)
    with pytest.raises(ValueError, match="scale=0"):
        PredictionError(Environments(Corridor), scale=0.0)
