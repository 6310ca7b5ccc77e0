"""Environments that reward nothing but the goal."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vogn.rl.gymnasium_extra import gymnasium

_gym = gymnasium()


class GoalReward(_gym.Wrapper):  # type: ignore[name-defined]
    """Reward 1 where the environment terminates, 0 everywhere else.

    Args:
        env: one that terminates at its goal only.
    """

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """The same step with another reward."""
        observation, _, terminated, truncated, info = self.env.step(action)
        return observation, float(terminated), terminated, truncated, info


def sparse_mountain_car_continuous(max_steps: int = 500) -> Any:
    """Gymnasium's MountainCarContinuous without its cost of actions: reward 1 on the hill, within ``max_steps``."""
    env = _gym.make("MountainCarContinuous-v0", max_episode_steps=max_steps, disable_env_checker=True)
    return GoalReward(env)


def sparse_acrobot(max_steps: int = 500) -> Any:
    """Gymnasium's Acrobot with reward 1 where the tip reaches the line, within ``max_steps``."""
    return GoalReward(_gym.make("Acrobot-v1", max_episode_steps=max_steps, disable_env_checker=True))


class CartPoleSwingUp(_gym.Env):  # type: ignore[name-defined]
    """A pole that hangs from a cart; reward 1 in every step in which it stands, ``cos(angle) > 0.8``, else 0.

    The cart is pushed with a force in [-10, 10] N; it may not leave ``|x| <= 2.4`` m (the episode terminates). The
    equations of motion are those of a cart-pole without friction, integrated by 0.01 s with semi-implicit Euler, two
    integrations a step. Observations: ``x, velocity, cos(angle), sin(angle), angular velocity``, float32; the angle is
    zero upright. Truncation after ``max_steps``.

    Args:
        max_steps: >= 1.

    Source: Barto, Sutton, Anderson (1983) for the dynamics; Houthooft et al. (2016), section 3, for the sparse reward.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    GRAVITY, CART, POLE, HALF_LENGTH, FORCE, BOUND, INTERVAL = 9.8, 1.0, 0.1, 0.5, 10.0, 2.4, 0.01

    def __init__(self, max_steps: int = 500) -> None:
        if max_steps < 1:
            raise ValueError(f"max_steps={max_steps} must be at least 1")
        self.max_steps = max_steps
        high = np.array([self.BOUND * 2, np.inf, 1.0, 1.0, np.inf], dtype=np.float32)
        self.observation_space = _gym.spaces.Box(-high, high, dtype=np.float32)
        self.action_space = _gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.state: NDArray[np.float64] = np.zeros(4)
        """``x``, velocity, angle, angular velocity."""
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Hanging, nearly at rest."""
        super().reset(seed=seed)
        self.state = np.array([0.0, 0.0, math.pi, 0.0]) + self.np_random.uniform(-0.05, 0.05, 4)
        self._steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Push for 0.02 s."""
        force = self.FORCE * float(np.clip(np.asarray(action).reshape(-1)[0], -1.0, 1.0))
        for _ in range(2):
            self.state = self.integrated(self.state, force)
        self._steps += 1
        standing = math.cos(self.state[2]) > 0.8
        terminated = bool(abs(self.state[0]) > self.BOUND)
        return self._observation(), float(standing and not terminated), terminated, self._steps >= self.max_steps, {}

    def integrated(self, state: NDArray[np.float64], force: float) -> NDArray[np.float64]:
        """The state after one interval."""
        x, velocity, angle, spin = state
        sine, cosine = math.sin(angle), math.cos(angle)
        total, moment = self.CART + self.POLE, self.POLE * self.HALF_LENGTH
        push = (force + moment * spin**2 * sine) / total
        turning = (self.GRAVITY * sine - cosine * push) / (
            self.HALF_LENGTH * (4 / 3 - self.POLE * cosine**2 / total)
        )
        pulling = push - moment * turning * cosine / total
        velocity, spin = velocity + self.INTERVAL * pulling, spin + self.INTERVAL * turning
        return np.array([x + self.INTERVAL * velocity, velocity, angle + self.INTERVAL * spin, spin])

    def _observation(self) -> NDArray[np.float32]:
        x, velocity, angle, spin = self.state
        return np.array([x, velocity, math.cos(angle), math.sin(angle), spin], dtype=np.float32)
