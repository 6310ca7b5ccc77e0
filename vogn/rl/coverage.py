"""How many cells of a grid over the states a run has reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


class StateCoverage:
    """Counts distinct cells.

    Args:
        low, high: bounds of the coordinates that are counted, ``(k,)``; states outside count for the cells at the edge.
        bins: cells along each coordinate, >= 1.
        coordinates: which of a state's numbers they are; ``None``: the first ``k``.
        every: steps between entries of :attr:`RunResult.coverage`, >= 1.

    Raises:
        ValueError: if bounds do not fit.
    """

    def __init__(
        self,
        low: Sequence[float],
        high: Sequence[float],
        *,
        bins: int = 20,
        coordinates: Sequence[int] | None = None,
        every: int = 1000,
    ) -> None:
        self.low, self.high = torch.tensor(low), torch.tensor(high)
        if self.low.shape != self.high.shape or not bool((self.low < self.high).all()) or min(bins, every) < 1:
            raise ValueError("coverage needs low < high, one of each for every coordinate, and bins, every >= 1")
        self.bins, self.every = bins, every
        self.coordinates = list(range(len(self.low)) if coordinates is None else coordinates)
        if len(self.coordinates) != len(self.low):
            raise ValueError(f"there are {len(self.low)} bounds for {len(self.coordinates)} coordinates")
        self.cells: set[int] = set()

    def __len__(self) -> int:
        return len(self.cells)

    def add(self, states: Tensor) -> None:
        """Count states ``(N, d)``."""
        share = (states[:, self.coordinates] - self.low) / (self.high - self.low)
        index = (share * self.bins).long().clamp(0, self.bins - 1)
        powers = self.bins ** torch.arange(len(self.low))
        self.cells.update((index * powers).sum(1).tolist())

    def state_dict(self) -> dict[str, Any]:
        """The cells."""
        return {"cells": sorted(self.cells)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undoes :meth:`state_dict`."""
        self.cells = set(state["cells"])
