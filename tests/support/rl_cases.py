"""Small Gymnasium environments that count, fail or drift, and agents on them."""

import gymnasium
import numpy as np

from vogn.rl import ACKTR, DQN, ACKTRSettings, BayesianDQN, DQNSettings, NoisyDQN


class Corridor(gymnasium.Env):
    """Five cells; right pays at the end and terminates; truncation after 12 steps; starts are drawn from the seed."""

    def __init__(self, real=False):
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = (
            gymnasium.spaces.Box(-2.0, 1.0, (1,), np.float32) if real else gymnasium.spaces.Discrete(2)
        )
        self.real = real

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.cell, self.steps = int(self.np_random.integers(3)), 0
        return self.observation(), {}

    def observation(self):
        return np.array([self.cell / 4, self.steps / 12, self.np_random.uniform(-0.1, 0.1)], dtype=np.float32)

    def step(self, action):
        right = bool(action[0] > 0) if self.real else action == 1
        self.cell = min(self.cell + 1, 4) if right else max(self.cell - 1, 0)
        self.steps += 1
        reward = float(self.cell == 4) - 0.01
        return self.observation(), reward, self.cell == 4, self.steps >= 12, {}


class Failing(Corridor):
    """Raises, or returns something else, in one step counted over all episodes while ``armed``."""

    armed = True

    def __init__(self, at, what):
        super().__init__()
        self.at, self.what, self.total = at, what, 0

    def step(self, action):
        self.total += 1
        found = super().step(action)
        if self.total == self.at and Failing.armed:
            if self.what == "raise":
                raise RuntimeError("the simulator is gone")
            if self.what == "nan":
                return (found[0], float("nan"), *found[2:])
            if self.what == "none":
                return (found[0], None, *found[2:])
            if self.what == "shape":
                return (np.zeros(4, dtype=np.float32), *found[1:])
            return (found[0] * np.nan, *found[1:])
        return found


class Drifting(Corridor):
    """Its observations depend on how often it was made: it cannot be replayed."""

    made = 0

    def __init__(self):
        super().__init__()
        Drifting.made += 1

    def observation(self):
        return super().observation() + np.float32(Drifting.made / 1000)


TINY = DQNSettings(hidden=(8,), batch_size=8, warmup=10, update_every=2, target_every=3, capacity=40)


def make_agent(kind, environments, seed=0):
    """An agent by name, small."""
    if kind == "dqn":
        return DQN(environments, TINY, seed=seed, epsilon_steps=50)
    if kind == "noisy":
        return NoisyDQN(environments, TINY, seed=seed)
    if kind.startswith("acktr"):
        settings = ACKTRSettings(hidden=(8,), rollout=5, shared=kind.endswith("shared"), critic_steps=2, anneal=500)
        return ACKTR(environments, settings, seed=seed)
    method, _, target = kind.partition(" ")
    return BayesianDQN(environments, TINY, method=method, target=target or "sample", seed=seed)


class FailingReset(Corridor):
    """Raises in its third reset while ``armed``."""

    armed = True

    def __init__(self):
        super().__init__()
        self.resets = 0

    def reset(self, *, seed=None, options=None):
        self.resets += 1
        if self.resets == 3 and FailingReset.armed:
            raise OSError("no more worlds")
        return super().reset(seed=seed)
