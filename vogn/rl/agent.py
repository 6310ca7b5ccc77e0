"""What a run asks of an agent."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from vogn.rl.environments import Environments, SpaceMismatchError, Transitions


class Agent(ABC):
    """Acts in all copies of an environment at once, and learns from every step.

    Args:
        environments: for the number of copies and the spaces; they are not kept.
    """

    def __init__(self, environments: Environments) -> None:
        self.count, self.features = environments.count, environments.features
        self.actions, self.low, self.high = environments.actions, environments.low, environments.high

    def check_spaces(self, environments: Environments) -> None:
        """The environments are like those that the agent was built for.

        Raises:
            SpaceMismatchError: if not.
        """
        mine = (self.features, self.actions, None if self.low is None else len(self.low))
        theirs = (
            environments.features, environments.actions, None if environments.low is None else len(environments.low)
        )  # fmt: skip
        if mine != theirs:
            names = ("observation numbers", "discrete actions", "real actions")
            text = ", ".join(f"{n} {m} against {t}" for n, m, t in zip(names, mine, theirs, strict=True) if m != t)
            raise SpaceMismatchError(f"the agent was built for another environment: {text}")

    @abstractmethod
    def act(self, observations: Tensor) -> Tensor:
        """Actions that explore, for ``(count, d)``: ``(count,)`` int64 or ``(count, a)``."""

    @abstractmethod
    def best(self, observations: Tensor) -> Tensor:
        """Actions that the agent holds for best, for any number of observations."""

    @abstractmethod
    def observe(self, step: Transitions) -> None:
        """Learn from a step."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as tensors and plain data."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undoes :meth:`state_dict`, for an agent that was built in the same way."""
