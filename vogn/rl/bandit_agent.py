"""What a run of a bandit asks of an agent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class BanditAgent(ABC):
    """Chooses arms and learns from their rewards.

    Args:
        features: of a context, ``d >= 1``.
        arms: ``K >= 2``.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(self, features: int, arms: int) -> None:
        if features < 1 or arms < 2:
            raise ValueError(f"a bandit needs features >= 1 and arms >= 2, got {features} and {arms}")
        self.features, self.arms = features, arms

    @abstractmethod
    def choose(self, context: NDArray[np.float64]) -> int:
        """The arm to pull for a context ``(d,)``."""

    @abstractmethod
    def observe(self, context: NDArray[np.float64], arm: int, reward: float) -> None:
        """Learn that ``arm`` paid ``reward`` for ``context``."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as tensors and plain data."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undoes :meth:`state_dict`, for an agent that was built in the same way."""

    def checked(self, context: NDArray[np.float64], arm: int | None = None, reward: float = 0.0) -> NDArray[np.float64]:
        """The context as an array.

        Raises:
            ValueError: for another shape, an unknown arm, or a number that is not finite.
        """
        found = np.asarray(context, dtype=float)
        if found.shape != (self.features,):
            raise ValueError(f"this agent's contexts have shape ({self.features},), got {found.shape}")
        if not np.isfinite(found).all():
            raise ValueError("the context has values that are not finite")
        if arm is not None and not 0 <= arm < self.arms:
            raise ValueError(f"arm {arm} does not exist: there are arms 0 to {self.arms - 1}")
        if not np.isfinite(reward):
            raise ValueError(f"the reward of arm {arm} is {reward}: an agent cannot learn from it; mend the problem")
        return found


class UniformBandit(BanditAgent):
    """Pulls arms at random and learns nothing: the line that every agent must be below."""

    def __init__(self, features: int, arms: int, *, seed: int = 0) -> None:
        super().__init__(features, arms)
        self.seed = seed
        self.decisions = 0

    def choose(self, context: NDArray[np.float64]) -> int:
        """A function of seed and number of the decision."""
        self.checked(context)
        self.decisions += 1
        return int(np.random.default_rng((self.seed, self.decisions)).integers(self.arms))

    def observe(self, context: NDArray[np.float64], arm: int, reward: float) -> None:
        """Nothing is kept."""
        self.checked(context, arm, reward)

    def state_dict(self) -> dict[str, Any]:
        """The number of decisions."""
        return {"decisions": self.decisions}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`BanditAgent.load_state_dict`."""
        self.decisions = int(state["decisions"])
