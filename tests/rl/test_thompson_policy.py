"""The policy in the form of stable-baselines3: draws, means, and its evaluation loop."""

import numpy as np
import pytest
import torch

import vogn
from vogn.models import mlp
from vogn.rl import RL_AGENTS, Environments, ThompsonPolicy, make_agent, run_agent


def policy(seed=0):
    torch.manual_seed(0)
    network = mlp((4, 6, 2))
    x, y = torch.randn(30, 4), torch.randn(30, 2)
    posterior = vogn.laplace(network, vogn.likelihoods.Gaussian(0.5), [(x, y)])
    return ThompsonPolicy(network, posterior, seed=seed)


def greedy(network, weights, row):
    return int(torch.func.functional_call(network, weights, (torch.from_numpy(row)[None],)).argmax())


def test_draws_last_for_an_episode_and_belong_to_its_number():
    found = policy(seed=3)
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    draws = found.posterior.sample(4, seed=3)
    plan = [([True, True], (0, 1)), ([False, False], (0, 1)), ([False, True], (0, 2)), ([True, False], (3, 2))]
    for started, numbers in plan:
        actions, state = found.predict(x, None, np.array(started))
        assert state is None
        for i, number in enumerate(numbers):
            assert actions[i] == greedy(found.network, {name: t[number] for name, t in draws.items()}, x[i])


def test_deterministic_is_greedy_for_the_mean():
    found = policy()
    x = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    actions, _ = found.predict(x, deterministic=True)
    assert actions.tolist() == found.network(torch.from_numpy(x)).argmax(1).tolist()
    single, _ = found.predict(x[0], deterministic=True)
    assert single.shape == () and int(single) == actions[0] and found.draws == 0


def test_bad_input_is_refused():
    found = policy()
    with pytest.raises(ValueError, match="not finite"):
        found.predict(np.full((1, 4), np.nan))
    with pytest.raises(ValueError, match=r"episode_start has shape \(3,\)"):
        found.predict(np.zeros((2, 4)), episode_start=np.zeros(3, dtype=bool))
    with pytest.raises(TypeError, match="sample"):
        ThompsonPolicy(mlp((4, 2)), "posterior")


def test_evaluate_policy_of_stable_baselines3_takes_it():
    pytest.importorskip("stable_baselines3", reason="stable-baselines3 is in the extra `bench` only")
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy

    found = policy()
    returns, _ = evaluate_policy(
        found, make_vec_env("CartPole-v1", n_envs=2, seed=0), n_eval_episodes=4, deterministic=False,
        return_episode_rewards=True, warn=False,
    )  # fmt: skip
    assert len(returns) == 4 and min(returns) >= 8
    assert found.draws >= 4


@pytest.mark.parametrize("name", RL_AGENTS)
def test_every_agent_by_name_acts_and_learns(name):
    info = RL_AGENTS[name]
    task = "Pendulum-v1" if info.actions == "real" else "CartPole-v1"
    environments = Environments(task, count=info.copies)
    agent = make_agent(name, environments, hidden=(4,))
    before = [p.detach().clone() for p in agent.network.parameters()]
    run_agent(agent, task, steps=510 if info.copies == 1 else 320)
    assert any(not torch.equal(p, q) for p, q in zip(before, agent.network.parameters(), strict=True))
