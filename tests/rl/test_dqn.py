"""Targets, exploration and updates of the value learners against plain loops."""

import numpy as np
import pytest
import torch
from rl_cases import Corridor, make_agent

from vogn.rl import BayesianDQN, DQNSettings, Environments, NoisyDQN, NoisyLinear, evaluate_agent, run_agent
from vogn.rl.deep_sea import DeepSea
from vogn.rl.replay import ReplayBuffer


def filled(agent, steps=60):
    environments = Environments(Corridor, count=agent.count)
    for number in range(steps):
        actions = agent.act(environments.observations)
        if number % 30 < 10:  # the goal is reached, and episodes are cut off too
            actions = torch.ones_like(actions)
        elif number % 30 < 24:
            actions = torch.zeros_like(actions)
        agent.observe(environments.step(actions)[0])
    return agent


def test_targets_bootstrap_truncated_episodes_and_not_terminated_ones():
    agent = filled(make_agent("dqn", Environments(Corridor)))
    batch = agent.buffer.batch(30, np.random.default_rng(0))
    assert batch["terminated"].any() and not batch["terminated"].all()
    found = agent.td_targets(batch)
    for i in range(30):
        following = batch["following"][i : i + 1]
        best = int(agent.network(following).argmax())
        value = 0.0 if batch["terminated"][i] else float(agent.target(following)[0, best])
        assert float(found[i]) == pytest.approx(float(batch["rewards"][i]) + 0.99 * value, abs=1e-6)


def test_updates_begin_after_the_warm_up_and_keep_their_interval():
    agent = filled(make_agent("dqn", Environments(Corridor)), 60)
    assert agent.updates == len([n for n in range(10, 61) if n % 2 == 0])


def test_replay_buffer_is_a_ring():
    buffer = ReplayBuffer(10)
    environments = Environments(Corridor, count=3)
    added = []
    for number in range(9):
        step, _ = environments.step(torch.tensor([number % 2, 1, 0]))
        buffer.add(step)
        added += step.following.tolist()
    assert len(buffer) == 10 and buffer.seen == 27
    rows = {tuple(row) for row in buffer._rows["following"].tolist()}
    assert rows == {tuple(row) for row in added[-10:]}
    with pytest.raises(ValueError, match="empty"):
        ReplayBuffer(3).batch(1, np.random.default_rng(0))


def test_epsilon_falls_in_a_line():
    agent = make_agent("dqn", Environments(Corridor))
    assert agent.chance() == 1.0
    agent.buffer.seen = 25
    assert agent.chance() == pytest.approx(0.525)
    agent.buffer.seen = 500
    assert agent.chance() == pytest.approx(0.05)


def test_one_draw_serves_an_episode_and_another_the_next():
    agent = filled(make_agent("vogn", Environments(Corridor, count=2)), 30)
    x = torch.zeros(2, 3)
    agent._stale[:] = True
    agent.explore(x)
    kept = {name: rows.clone() for name, rows in agent._acting.items()}
    agent.explore(x)
    assert all(torch.equal(kept[name], agent._acting[name]) for name in kept)
    agent._stale[1] = True
    agent.explore(x)
    assert all(torch.equal(kept[name][0], agent._acting[name][0]) for name in kept)
    assert any(not torch.equal(kept[name][1], agent._acting[name][1]) for name in kept)


@pytest.mark.parametrize("count", [1, 2])
def test_actions_are_greedy_for_the_draw(count):
    agent = filled(make_agent("vogn", Environments(Corridor, count=count)), 30)
    x = torch.randn(count, 3)
    found = agent.explore(x)
    for copy in range(count):
        weights = {name: rows[copy] for name, rows in agent._acting.items()}
        values = torch.func.functional_call(agent.network, weights, (x[copy : copy + 1],))
        assert int(values.argmax()) == int(found[copy])


def test_the_posterior_counts_visits_where_values_are_a_table():
    """Linear values of one-hot states and the exact Gauss-Newton diagonal: precision = prior + visits / noise^2."""
    environments = Environments(lambda: DeepSea(3), seed=0)
    settings = DQNSettings(hidden=(), noise=0.5, warmup=1, batch_size=64, capacity=1000)
    agent = BayesianDQN(environments, settings, prior_precision=2.0, options={"curvature_decay": 0.0})
    for _ in range(60):
        agent.observe(environments.step(agent.act(environments.observations))[0])
    everything = agent.buffer._rows
    agent.buffer.batch = lambda size, generator: {name: rows[:60] for name, rows in everything.items()}
    agent._learn()
    weight = next(b for b in agent.posterior().blocks if "weight" in "".join(b.layout.names))
    visits = torch.zeros(2, 9)
    for x, a in zip(everything["observations"][:60], everything["actions"][:60], strict=True):
        visits[a] += x
    precision = 1 / weight.variance()
    torch.testing.assert_close(precision[:, :9], 2.0 + visits / 0.25, rtol=1e-4, atol=1e-3)
    assert visits.max() > 5


def test_draws_find_the_treasure_where_means_do_not_travel():
    """Of 256 paths one pays; with sampled targets it is found within 150 episodes, and then taken."""

    def make():
        return DeepSea(8, mapping_seed=1)

    environments = Environments(make)
    settings = DQNSettings(hidden=(), noise=0.1, discount=1.0, warmup=80, update_every=2, target_every=20)
    agent = BayesianDQN(environments, settings, options={"lr": 0.1, "damping": 0.01})
    result = run_agent(agent, make, steps=150 * 8)
    assert result.first_return_above(0.5) is not None
    assert evaluate_agent(agent, make, episodes=1)[0] > 0.9


def test_noisy_layer_is_its_formula():
    torch.manual_seed(0)
    layer = NoisyLinear(4, 3)
    layer.draw(torch.Generator().manual_seed(1))
    x = torch.randn(5, 4)
    expected = torch.zeros(5, 3)
    for n in range(5):
        for i in range(3):
            expected[n, i] = layer.mean_bias[i] + layer.spread_bias[i] * layer.noise_out[i]
            for j in range(4):
                noise = layer.noise_out[i] * layer.noise_in[j]
                expected[n, i] += (layer.mean[i, j] + layer.spread[i, j] * noise) * x[n, j]
    torch.testing.assert_close(layer(x), expected)
    layer.quiet()
    torch.testing.assert_close(layer(x), torch.nn.functional.linear(x, layer.mean, layer.mean_bias))


def test_best_actions_are_those_without_noise():
    agent = filled(make_agent("noisy", Environments(Corridor)), 30)
    assert isinstance(agent, NoisyDQN)
    x = torch.randn(6, 3)
    found = agent.best(x)
    assert found.tolist() == agent.best(x).tolist()
    assert all(float(layer.noise_in.abs().sum()) == 0 for layer in agent.network if isinstance(layer, NoisyLinear))


def test_numbers_out_of_range_are_refused():
    environments = Environments(Corridor)
    with pytest.raises(ValueError, match="discount=2"):
        DQNSettings(discount=2.0)
    with pytest.raises(ValueError, match="warmup=0"):
        DQNSettings(warmup=0)
    with pytest.raises(ValueError, match="target='median'"):
        BayesianDQN(environments, target="median")
    with pytest.raises(ValueError, match="'sgd' is unknown"):
        BayesianDQN(environments, method="sgd")
