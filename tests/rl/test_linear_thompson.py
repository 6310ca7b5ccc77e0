"""Exact Bayesian linear regression, round by round, against ridge regression on everything at once."""

import numpy as np
import pytest
import torch

from vogn.rl import BanditProblem, EpsilonGreedy, LinearThompson, make_bandit_agent, run_bandit


def played(rounds=40, noise=0.7, precision=2.5):
    generator = np.random.default_rng(0)
    agent = LinearThompson(3, 2, noise=noise, prior_precision=precision)
    x, arms = generator.normal(size=(rounds, 3)), generator.integers(0, 2, rounds)
    rewards = generator.normal(size=rounds)
    for row in zip(x, arms, rewards, strict=True):
        agent.observe(row[0], int(row[1]), float(row[2]))
    return agent, x, arms, rewards


def test_recursive_posterior_is_batch_ridge_regression():
    noise, precision = 0.7, 2.5
    agent, x, arms, rewards = played(noise=noise, precision=precision)
    phi = np.hstack([x, np.ones((len(x), 1))])
    for arm in range(2):
        rows, paid = phi[arms == arm], rewards[arms == arm]
        batch = rows.T @ rows / noise**2 + precision * np.eye(4)
        np.testing.assert_allclose(agent.precision[arm].numpy(), batch, rtol=1e-10)
        mean = np.linalg.solve(batch, rows.T @ paid / noise**2)
        np.testing.assert_allclose(agent.mean()[arm].numpy(), mean, rtol=1e-10, atol=1e-12)


def test_mean_is_that_of_scikit_learn():
    from sklearn.linear_model import Ridge

    noise, precision = 0.7, 2.5
    agent, x, arms, rewards = played(noise=noise, precision=precision)
    phi = np.hstack([x, np.ones((len(x), 1))])
    ridge = Ridge(alpha=precision * noise**2, fit_intercept=False).fit(phi[arms == 0], rewards[arms == 0])
    np.testing.assert_allclose(agent.mean()[0].numpy(), ridge.coef_, atol=1e-9)


def test_draws_have_the_posterior_covariance():
    agent, *_ = played()
    draws = torch.stack([agent.draw()[0] for _ in range(4000)])
    white = torch.linalg.cholesky(agent.precision[0]).T @ (draws - agent.mean()[0]).T
    covariance = white @ white.T / len(draws)
    # entries are averages of 4000 products with variance at most 2
    assert float((covariance - torch.eye(4)).abs().max()) < 4.5 * (2 / 4000) ** 0.5


def two_arms(rounds, seed):
    generator = np.random.default_rng(1000 + seed)
    expected = np.tile([1.0, 2.0], (rounds, 1))
    rewards = expected + generator.normal(size=(rounds, 2))
    return BanditProblem("two arms", np.zeros((rounds, 1)), expected, rewards)


def test_regret_of_two_arms_grows_like_a_logarithm_and_greedy_does_not():
    """Regret in rounds 31 to 300 is at most a few times that of the first 30; a linear one would be nine times."""
    early, late, greedy = [], [], []
    for seed in range(20):
        problem = two_arms(300, seed)
        regret = run_bandit(LinearThompson(1, 2, noise=1.0, seed=seed), problem).cumulative_regret
        early.append(regret[29])
        late.append(regret[-1] - regret[29])
        best = GreedyMeans(1, 2, noise=1.0)
        greedy.append(run_bandit(best, problem).cumulative_regret[-1])
    assert np.mean(late) < 2.0 * np.mean(early)
    assert np.mean(np.add(early, late)) < 0.5 * np.mean(greedy)


class GreedyMeans(LinearThompson):
    """The same regression without draws."""

    def choose(self, context):
        return int((self.mean() @ self._phi(self.checked(context))).argmax())


def test_bad_numbers_are_refused():
    agent = LinearThompson(2, 3)
    with pytest.raises(ValueError, match=r"reward of arm 1 is nan"):
        agent.observe(np.zeros(2), 1, float("nan"))
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        agent.choose(np.zeros(3))
    with pytest.raises(ValueError, match="arms 0 to 2"):
        agent.observe(np.zeros(2), 3, 0.0)
    with pytest.raises(ValueError, match="not finite"):
        agent.choose(np.array([0.0, np.inf]))
    with pytest.raises(ValueError, match=r"noise=0\.0"):
        LinearThompson(2, 3, noise=0.0)
    with pytest.raises(ValueError, match="arms >= 2"):
        LinearThompson(2, 1)


def test_agents_are_not_for_other_problems():
    with pytest.raises(ValueError, match="1 features and 2 arms"):
        run_bandit(LinearThompson(4, 2), two_arms(10, 0))
    assert isinstance(make_bandit_agent("greedy", two_arms(10, 0)), EpsilonGreedy)
