"""DeepSea: one rewarded path among 2^N, so that undirected exploration needs about 2^N episodes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vogn.rl.gymnasium_extra import gymnasium

_gym = gymnasium()

MOVE_COST = 0.01
"""Of all moves to the right together."""


class DeepSea(_gym.Env):  # type: ignore[name-defined]
    """An ``N x N`` grid; the diver begins at the top left and sinks one row a step, to the left or to the right.

    A move to the right costs ``0.01 / N``; only who goes right ``N`` times reaches the treasure, reward 1, at the
    bottom right. The best return is 0.99, that of a policy that never goes right is 0. Which of the two actions means
    right is drawn for every cell, with ``mapping_seed``.

    Observations: the cell as one-hot ``(N^2,)``, float32. Actions: ``Discrete(2)``. An episode terminates after ``N``
    steps.

    Args:
        size: ``N >= 2``.
        mapping_seed: of the meaning of the actions, >= 0; ``None``: action 1 is always right.

    Raises:
        ValueError: if a number is out of range.

    Source: Osband, Doron, Hessel, et al. (2020), "Behaviour Suite for Reinforcement Learning"; Osband, Van Roy, Russo,
    Wen (2019), "Deep Exploration via Randomized Value Functions".
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, size: int = 10, *, mapping_seed: int | None = 0) -> None:
        if size < 2:
            raise ValueError(f"size={size} must be at least 2")
        self.size = size
        self.observation_space = _gym.spaces.Box(0.0, 1.0, (size * size,), np.float32)
        self.action_space = _gym.spaces.Discrete(2)
        generator = None if mapping_seed is None else np.random.default_rng(mapping_seed)
        self.right: NDArray[np.int64] = (
            np.ones((size, size), dtype=np.int64) if generator is None else generator.integers(0, 2, (size, size))
        )
        """The action that means right, ``(row, column)``."""
        self._row = self._column = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """To the top left; nothing is random."""
        super().reset(seed=seed)
        self._row = self._column = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Sink one row.

        Raises:
            ValueError: for another action than 0 or 1, or after the end of an episode.
        """
        if int(action) not in (0, 1):
            raise ValueError(f"action {action} is not 0 or 1")
        if self._row >= self.size:
            raise ValueError("the episode is over: call reset()")
        right = int(action) == self.right[self._row, self._column]
        reward = -MOVE_COST / self.size if right else 0.0
        if right and self._column == self.size - 1:
            reward += 1.0
        self._column = min(self._column + 1, self.size - 1) if right else max(self._column - 1, 0)
        self._row += 1
        return self._observation(), float(reward), self._row >= self.size, False, {}

    def _observation(self) -> NDArray[np.float32]:
        """All zero below the last row."""
        cells = np.zeros((self.size, self.size), dtype=np.float32)
        if self._row < self.size:
            cells[self._row, self._column] = 1.0
        return cells.reshape(-1)
