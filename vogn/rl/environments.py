"""Several copies of a Gymnasium environment, checked, with episodes that can be replayed exactly."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vogn.errors import CheckpointError, VognError
from vogn.rl.gymnasium_extra import gymnasium
from vogn.rl.randomness import derived_seed

MakeEnvironment = str | Callable[[], Any]
"""A registered Gymnasium name, a name of :func:`named_environment`, or a function that makes an environment."""


SPARSE = {
    "SparseMountainCarContinuous": "sparse_mountain_car_continuous",
    "SparseCartPoleSwingUp": "CartPoleSwingUp",
    "SparseAcrobot": "sparse_acrobot",
}
"""Names of environments that reward only the goal, and what makes them in :mod:`vogn.rl.sparse_environments`."""


class EnvironmentFailure(VognError, RuntimeError):
    """An environment raised, or returned what no agent can learn from."""


class SpaceMismatchError(VognError, ValueError):
    """Spaces of environments and agents do not fit."""


@dataclass(frozen=True)
class Transitions:
    """What one step of all copies gave; row ``i`` is of copy ``i``.

    Args:
        observations: ``(count, d)``, before the step.
        actions: ``(count,)`` int64 or ``(count, a)`` float32.
        rewards: ``(count,)``.
        following: ``(count, d)``, after the step and before any reset.
        terminated: ``(count,)``, bool: the episode ended, and no reward would have followed.
        truncated: ``(count,)``, bool: the episode was cut off; values of ``following`` count.
    """

    observations: Tensor
    actions: Tensor
    rewards: Tensor
    following: Tensor
    terminated: Tensor
    truncated: Tensor

    @property
    def ended(self) -> Tensor:
        """Terminated or truncated."""
        return self.terminated | self.truncated


@dataclass(frozen=True)
class EpisodeEnd:
    """An episode that ended.

    Args:
        copy: index of the environment.
        total: sum of its rewards.
        length: steps.
    """

    copy: int
    total: float
    length: int


class Environments:
    """``count`` copies that are stepped together. A copy that ends is reset at once.

    Episode ``e`` of copy ``i`` is reset with a seed that is a function of (``seed``, ``i``, ``e``): a checkpoint holds
    the actions of the episodes that are under way, and a resumed run replays them. That is exact for every environment
    whose randomness comes from the seed of its last reset; others are noticed, and refused, when they are resumed.

    Args:
        make: an environment by name, or a function without arguments that makes one.
        count: copies, >= 1.
        seed: >= 0.

    Attributes:
        features: ``d``: observations are flattened, discrete ones are one-hot.
        actions: number of actions; ``None`` where they are real vectors.
        low, high: bounds of real actions, ``(a,)``; ``None`` where they are discrete.

    Raises:
        MissingExtraError: without Gymnasium.
        EnvironmentFailure: if one cannot be made.
        SpaceMismatchError: for action spaces that are neither discrete nor bounded vectors, or copies that differ.
        ValueError: if a number is out of range.
    """

    def __init__(self, make: MakeEnvironment, *, count: int = 1, seed: int = 0) -> None:
        if count < 1 or seed < 0:
            raise ValueError(f"count={count} must be at least 1 and seed={seed} at least 0")
        self.count, self.seed = count, seed
        self.envs = [_made(make) for _ in range(count)]
        spaces = gymnasium().spaces
        first = self.envs[0]
        self._space, self._action_space = first.observation_space, first.action_space
        for env in self.envs[1:]:
            if env.observation_space != self._space or env.action_space != self._action_space:
                raise SpaceMismatchError("the copies of the environment have different spaces")
        self.features = int(spaces.flatdim(self._space))
        self.actions: int | None = None
        self.low: Tensor | None = None
        self.high: Tensor | None = None
        self._first_action = 0
        space = self._action_space
        if isinstance(space, spaces.Discrete):
            self.actions, self._first_action = int(space.n), int(space.start)
        elif isinstance(space, spaces.Box) and len(space.shape) == 1 and np.isfinite([space.low, space.high]).all():
            self.low, self.high = torch.as_tensor(space.low).float(), torch.as_tensor(space.high).float()
        else:
            raise SpaceMismatchError(f"agents need Discrete or bounded one-dimensional Box actions, got {space}")
        self._episode = [0] * count
        self._history: list[list[Any]] = [[] for _ in range(count)]
        self._total = [0.0] * count
        self._current = np.zeros((count, self.features), dtype=np.float32)
        for copy in range(count):
            self._reset(copy)

    @property
    def observations(self) -> Tensor:
        """Of now, ``(count, d)``, float32."""
        return torch.from_numpy(self._current.copy())

    def step(self, actions: Tensor) -> tuple[Transitions, list[EpisodeEnd]]:
        """One step of every copy.

        Args:
            actions: ``(count,)`` int64, or ``(count, a)`` within the bounds.

        Raises:
            EnvironmentFailure: if a copy raises, or returns a reward or observation that is not finite;
                :meth:`state_dict` is then that before the step.
            SpaceMismatchError: for actions of another shape.
        """
        expected = (self.count,) if self.low is None else (self.count, len(self.low))
        if tuple(actions.shape) != expected:
            raise SpaceMismatchError(f"actions must have shape {expected}, got {tuple(actions.shape)}")
        before = self.observations
        given = actions.numpy()
        kept = ([list(actions) for actions in self._history], list(self._total), list(self._episode))
        try:
            found = [self._stepped(copy, given[copy]) for copy in range(self.count)]
            following, rewards, terminated, truncated = zip(*found, strict=True)
            ends = []
            for copy in range(self.count):
                self._current[copy] = following[copy]
                if terminated[copy] or truncated[copy]:
                    ends.append(EpisodeEnd(copy, self._total[copy], len(self._history[copy])))
                    self._episode[copy] += 1
                    self._reset(copy)
        except EnvironmentFailure:  # state_dict() is then that before the step
            self._history, self._total, self._episode = kept
            self._current = before.numpy()
            raise
        result = Transitions(
            before,
            actions,
            torch.tensor(rewards, dtype=torch.float32),
            torch.from_numpy(np.stack(following)),
            torch.tensor(terminated, dtype=torch.bool),
            torch.tensor(truncated, dtype=torch.bool),
        )
        return result, ends

    def state_dict(self) -> dict[str, Any]:
        """Episodes under way: their numbers, actions, and where they led."""
        return {
            "episode": list(self._episode),
            "history": [torch.as_tensor(np.array(actions)) for actions in self._history],
            "current": self.observations,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replay the episodes that were under way.

        Raises:
            CheckpointError: if the environment does not lead to the same observations again, or has other spaces.
        """
        self._episode = [int(number) for number in state["episode"]]
        if len(self._episode) != self.count or state["current"].shape != self._current.shape:
            raise CheckpointError("the checkpoint is of another number of environments, or of other observations")
        for copy, actions in enumerate(state["history"]):
            self._reset(copy)
            for action in actions.numpy():
                self._current[copy] = self._stepped(copy, action)[0]
        if not np.array_equal(self._current, state["current"].numpy()):
            raise CheckpointError(
                "the environment went elsewhere when the episode under way was replayed: it is not a function of the "
                "seed of reset() and the actions, so this run cannot be resumed exactly"
            )

    def close(self) -> None:
        """Close all copies."""
        for env in self.envs:
            env.close()

    def _where(self, copy: int) -> str:
        return f"environment {copy}, episode {self._episode[copy]}, step {len(self._history[copy])}"

    def _flat(self, copy: int, observation: Any) -> NDArray[np.float32]:
        try:
            flat = np.asarray(gymnasium().spaces.flatten(self._space, observation), dtype=np.float32).reshape(-1)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            text = f"{self._where(copy)}: the observation does not fit {self._space}: {error}"
            raise EnvironmentFailure(text) from error
        if flat.shape != (self.features,):
            raise EnvironmentFailure(
                f"{self._where(copy)}: the observation has {flat.size} numbers, its space {self._space} has "
                f"{self.features}; mend the environment's observation_space"
            )
        if not np.isfinite(flat).all():
            raise EnvironmentFailure(f"{self._where(copy)}: the observation has values that are not finite")
        return flat

    def _reset(self, copy: int) -> None:
        self._history[copy], self._total[copy] = [], 0.0
        try:
            observation, _ = self.envs[copy].reset(seed=derived_seed(self.seed, copy, self._episode[copy]))
        except Exception as error:
            raise EnvironmentFailure(f"{self._where(copy)}: reset() raised {type(error).__name__}: {error}") from error
        self._current[copy] = self._flat(copy, observation)

    def _stepped(self, copy: int, action: Any) -> tuple[NDArray[np.float32], float, bool, bool]:
        given = int(action) + self._first_action if self.low is None else np.asarray(action, dtype=np.float32)
        try:
            observation, reward, terminated, truncated, _ = self.envs[copy].step(given)
        except Exception as error:
            raise EnvironmentFailure(f"{self._where(copy)}: step() raised {type(error).__name__}: {error}") from error
        try:
            value = float(reward)
        except (TypeError, ValueError):
            value = float("nan")
        if not np.isfinite(value):
            raise EnvironmentFailure(
                f"{self._where(copy)}: the reward is {reward}; rewards must be finite numbers: mend the environment, "
                "the checkpoint before this step stays valid"
            )
        flat = self._flat(copy, observation)
        self._history[copy].append(np.array(action))
        self._total[copy] += value
        return flat, value, bool(terminated), bool(truncated)


def named_environment(name: str) -> Callable[[], Any]:
    """An environment of this package (:data:`SPARSE`, ``DeepSea-N``) or of Gymnasium's registry by name, or yours.

    Args:
        name: ``"package.module:callable"`` is imported (so only use names that you trust) and called without arguments.

    Raises:
        EnvironmentFailure: when it is made and there is none of that name.
    """
    if name.startswith("DeepSea-"):
        from vogn.rl.deep_sea import DeepSea

        size = name.removeprefix("DeepSea-")
        if not size.isdecimal() or int(size) < 2:
            raise EnvironmentFailure(f"{name!r}: give DeepSea a size of at least 2, such as DeepSea-10")
        return functools.partial(DeepSea, int(size))
    if name in SPARSE:
        return functools.partial(_sparse, name)
    module_name, colon, attribute = name.partition(":")
    if colon:
        try:
            found = getattr(importlib.import_module(module_name), attribute, None)
        except (ImportError, ValueError) as error:
            raise EnvironmentFailure(f"{name!r}: importing {module_name!r} failed: {error}") from error
        if callable(found):
            return functools.partial(found)
    return functools.partial(gymnasium().make, name, disable_env_checker=True)


def _sparse(name: str) -> Any:
    from vogn.rl import sparse_environments

    return getattr(sparse_environments, SPARSE[name])()


def _made(make: MakeEnvironment) -> Any:
    try:
        return named_environment(make)() if isinstance(make, str) else make()
    except gymnasium().error.Error as error:
        raise EnvironmentFailure(f"there is no environment {make!r}: {error}") from error
