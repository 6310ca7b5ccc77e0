"""Copies of an environment: seeds, episodes, replays, and everything that they refuse."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from rl_cases import Corridor, Drifting, Failing

from vogn.errors import CheckpointError, MissingExtraError
from vogn.rl import EnvironmentFailure, Environments, SpaceMismatchError, StateCoverage
from vogn.rl.deep_sea import DeepSea
from vogn.rl.environments import SPARSE, named_environment
from vogn.rl.gymnasium_extra import gymnasium as load
from vogn.rl.sparse_environments import CartPoleSwingUp


@pytest.mark.parametrize("name", ["DeepSea-4", *SPARSE])
def test_own_environments_pass_the_checks_of_gymnasium(name):
    env = named_environment(name)()
    check_env(env.unwrapped, skip_render_check=True)
    environments = Environments(name, count=2)
    actions = torch.zeros(2, dtype=torch.int64) if environments.low is None else torch.zeros(2, len(environments.low))
    step, _ = environments.step(actions)
    assert step.observations.shape == step.following.shape == (2, environments.features)


def test_deep_sea_pays_for_the_one_path():
    env = DeepSea(6, mapping_seed=3)
    env.reset()
    total, done = 0.0, False
    while not done:
        _, reward, done, _, _ = env.step(env.right[env._row, env._column])
        total += reward
    assert total == pytest.approx(0.99)
    returns = []
    for number in range(2**6):
        env.reset()
        bits = [(number >> k) & 1 for k in range(6)]
        returns.append(sum(env.step(bit)[1] for bit in bits))
    assert sum(value > 0.5 for value in returns) == 1
    assert 0 in {round(value, 9) for value in returns}  # always left
    with pytest.raises(ValueError, match="episode is over"):
        env.step(0)
    with pytest.raises(ValueError, match="size=1"):
        DeepSea(1)
    assert DeepSea(4, mapping_seed=None).right.min() == 1


def test_swing_up_keeps_its_energy_without_a_push():
    env = CartPoleSwingUp()
    m, M, length, g = env.POLE, env.CART, env.HALF_LENGTH, env.GRAVITY

    def energy(state):
        _, v, angle, spin = state
        kinetic = 0.5 * (M + m) * v**2 + m * length * v * spin * np.cos(angle) + 2 / 3 * m * length**2 * spin**2
        return kinetic + m * g * length * np.cos(angle)

    # the semi-implicit scheme is of first order: its error in energy shrinks with the interval
    errors = []
    for interval in (0.01, 0.001):
        env.INTERVAL = interval
        state, lost = np.array([0.0, 0.3, 2.0, 0.5]), 0.0
        start = energy(state)
        for _ in range(round(1.0 / interval)):
            state = env.integrated(state, 0.0)
            lost = max(lost, abs(energy(state) - start))
        errors.append(lost)
    assert errors[1] < 0.15 * errors[0] and errors[1] < 2e-3


def test_sparse_rewards_are_only_those_of_the_goal():
    env = named_environment("SparseMountainCarContinuous")()
    env.reset(seed=0)
    env.unwrapped.state = np.array([0.44, 0.06])
    _, reward, terminated, _, _ = env.step(np.array([1.0], dtype=np.float32))
    assert (reward, terminated) == (1.0, True)
    env.reset(seed=0)
    assert env.step(np.array([1.0], dtype=np.float32))[1] == 0.0


def test_rows_are_those_of_single_environments():
    """Three copies against a plain loop over three environments that are reset with the same seeds."""
    environments = Environments(Corridor, count=3, seed=5)
    generator = np.random.default_rng(0)
    from vogn.rl.randomness import derived_seed

    plain = [Corridor() for _ in range(3)]
    current = [env.reset(seed=derived_seed(5, i, 0))[0] for i, env in enumerate(plain)]
    episode, totals, ends, expected_ends = [0, 0, 0], [0.0] * 3, [], []
    for _ in range(40):
        actions = generator.integers(0, 2, 3)
        step, found = environments.step(torch.from_numpy(actions))
        ends += [(end.copy, end.total) for end in found]
        for i, env in enumerate(plain):
            assert step.observations[i].tolist() == current[i].tolist()
            current[i], reward, terminated, truncated, _ = env.step(actions[i])
            totals[i] += reward
            assert step.following[i].tolist() == current[i].tolist()
            assert float(step.rewards[i]) == np.float32(reward)
            assert (bool(step.terminated[i]), bool(step.truncated[i])) == (terminated, truncated)
            if terminated or truncated:
                expected_ends.append((i, totals[i]))
                episode[i], totals[i] = episode[i] + 1, 0.0
                current[i] = env.reset(seed=derived_seed(5, i, episode[i]))[0]
    assert ends == expected_ends and len(ends) > 5


def test_discrete_observations_are_one_hot_and_actions_may_start_elsewhere():
    class Shifted(Corridor):
        def __init__(self):
            super().__init__()
            self.observation_space = gymnasium.spaces.Discrete(5)
            self.action_space = gymnasium.spaces.Discrete(2, start=7)

        def observation(self):
            return self.cell

        def step(self, action):
            assert action in (7, 8)
            return super().step(action - 7)

    environments = Environments(Shifted)
    step, _ = environments.step(torch.tensor([1]))
    assert step.following.sum().item() == 1 and environments.features == 5


def test_state_is_replayed_in_the_middle_of_an_episode():
    one = Environments(Corridor, count=2, seed=1)
    for _ in range(17):
        one.step(torch.zeros(2, dtype=torch.int64))
    other = Environments(Corridor, count=2, seed=1)
    other.load_state_dict(one.state_dict())
    for number in range(20):
        actions = torch.tensor([number % 2, 1 - number % 2])
        a, ends_a = one.step(actions)
        b, ends_b = other.step(actions)
        assert torch.equal(a.following, b.following) and ends_a == ends_b


def test_what_cannot_be_replayed_is_refused():
    one = Environments(Drifting)
    one.step(torch.tensor([0]))
    state = one.state_dict()
    with pytest.raises(CheckpointError, match="not a function of the seed"):
        Environments(Drifting).load_state_dict(state)
    with pytest.raises(CheckpointError, match="another number of environments"):
        Environments(Corridor, count=2).load_state_dict(state)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nan", r"environment 0, episode 0, step 2: the reward is nan"),
        ("none", "the reward is None"),
        ("raise", r"step 2: step\(\) raised RuntimeError: the simulator is gone"),
        ("shape", "has 4 numbers"),
        ("observation", "values that are not finite"),
    ],
)
def test_bad_steps_name_their_place(what, message):
    Failing.armed = True
    environments = Environments(lambda: Failing(3, what), count=2)
    for _ in range(2):
        environments.step(torch.zeros(2, dtype=torch.int64))
    before = environments.state_dict()
    with pytest.raises(EnvironmentFailure, match=message):
        environments.step(torch.zeros(2, dtype=torch.int64))
    after = environments.state_dict()
    assert [len(rows) for rows in after["history"]] == [len(rows) for rows in before["history"]] == [2, 2]
    assert torch.equal(after["current"], before["current"])


def test_spaces_that_do_not_fit_are_refused():
    class Many(Corridor):
        def __init__(self):
            super().__init__()
            self.action_space = gymnasium.spaces.MultiDiscrete([2, 2])

    with pytest.raises(SpaceMismatchError, match="MultiDiscrete"):
        Environments(Many)
    kinds = iter([False, True])
    with pytest.raises(SpaceMismatchError, match="different spaces"):
        Environments(lambda: Corridor(next(kinds)), count=2)
    with pytest.raises(SpaceMismatchError, match=r"shape \(1,\), got \(2,\)"):
        Environments(Corridor).step(torch.zeros(2, dtype=torch.int64))
    with pytest.raises(EnvironmentFailure, match="no environment 'NoSuch-v0'"):
        Environments("NoSuch-v0")
    with pytest.raises(EnvironmentFailure, match="DeepSea-10"):
        Environments("DeepSea-x")
    with pytest.raises(ValueError, match="count=0"):
        Environments(Corridor, count=0)


def test_without_gymnasium_the_extra_is_named(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "gymnasium", None)
    with pytest.raises(MissingExtraError, match=r"vogn\[rl\]"):
        load()


def test_coverage_counts_cells():
    coverage = StateCoverage([0.0, 0.0], [1.0, 1.0], bins=2, coordinates=[0, 2])
    coverage.add(torch.tensor([[0.1, 9.0, 0.1], [0.2, 9.0, 0.3], [0.9, 9.0, 0.1], [5.0, 9.0, -3.0]]))
    assert len(coverage) == 2
    with pytest.raises(ValueError, match="low < high"):
        StateCoverage([1.0], [0.0])
