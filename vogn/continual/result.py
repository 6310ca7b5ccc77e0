"""What a run over tasks found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vogn.continual.average_accuracy import average_accuracy
from vogn.continual.backward_transfer import backward_transfer
from vogn.continual.forgetting import forgetting
from vogn.continual.forward_transfer import forward_transfer


@dataclass(frozen=True)
class ContinualResult:
    """Accuracies of a run.

    Args:
        tasks: their names, ``T``.
        matrix: ``R[i][j]``, ``(T, T)``: accuracy on the test part of task ``j`` after task ``i`` was trained.
        baseline: ``(T,)``: before any training.
    """

    tasks: Sequence[str]
    matrix: Sequence[Sequence[float]]
    baseline: Sequence[float]

    @property
    def metrics(self) -> dict[str, float]:
        """``average_accuracy``, ``backward_transfer``, ``forward_transfer`` and ``forgetting``."""
        return {
            "average_accuracy": average_accuracy(self.matrix),
            "backward_transfer": backward_transfer(self.matrix),
            "forward_transfer": forward_transfer(self.matrix, self.baseline),
            "forgetting": forgetting(self.matrix),
        }

    @property
    def averages(self) -> list[float]:
        """After every task, the average accuracy over the tasks so far, ``(T,)``."""
        return [sum(row[: k + 1]) / (k + 1) for k, row in enumerate(self.matrix)]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON, the metrics included."""
        return {
            "tasks": list(self.tasks),
            "matrix": [list(row) for row in self.matrix],
            "baseline": list(self.baseline),
            **self.metrics,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ContinualResult:
        """Undoes :meth:`to_dict`."""
        return cls(data["tasks"], data["matrix"], data["baseline"])
