"""A ring of transitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.random import Generator
from torch import Tensor

from vogn.rl.environments import Transitions

FIELDS = ("observations", "actions", "rewards", "following", "terminated")


class ReplayBuffer:
    """Keeps the last ``capacity`` transitions.

    Args:
        capacity: >= 1.

    Raises:
        ValueError: if it is out of range.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 1:
            raise ValueError(f"capacity={capacity} must be at least 1")
        self.capacity = capacity
        self.seen = 0
        """Transitions ever added."""
        self._rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def add(self, step: Transitions) -> None:
        """Append the rows of a step."""
        for i in range(len(step.rewards)):
            place = self.seen % self.capacity
            for name in FIELDS:
                value = getattr(step, name)[i]
                rows = self._rows.get(name)
                if rows is None or place >= len(rows):
                    more = min(self.capacity, max(1024, 2 * place)) - (0 if rows is None else len(rows))
                    fresh = value.new_zeros((more, *value.shape))
                    rows = self._rows[name] = fresh if rows is None else torch.cat([rows, fresh])
                rows[place] = value
            self.seen += 1

    def batch(self, size: int, generator: Generator) -> dict[str, Tensor]:
        """Rows drawn with replacement, by name: ``observations, actions, rewards, following, terminated``.

        Raises:
            ValueError: if there are none.
        """
        if not len(self):
            raise ValueError("the replay buffer is empty: add transitions first")
        index = torch.from_numpy(generator.integers(len(self), size=size))
        return {name: rows[index] for name, rows in self._rows.items()}

    def state_dict(self) -> dict[str, Any]:
        """All rows."""
        return {"seen": self.seen, "rows": {name: rows[: len(self)].clone() for name, rows in self._rows.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undoes :meth:`state_dict`."""
        self.seen = int(state["seen"])
        self._rows = {name: rows.clone() for name, rows in state["rows"].items()}
