"""What a run returns: a row for every training, from which curves and label counts are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LOWER_IS_BETTER = frozenset({"rmse", "nll"})


@dataclass(frozen=True)
class ActiveResult:
    """A run.

    Args:
        rows: after every training ``{"round", "labels", "queried", metrics ...}``: the number of the round from 0, the
            number of labels, the numbers of the examples that were new, and on the test part ``accuracy`` in [0, 1] or
            ``rmse`` in the unit of the targets, and ``nll`` in nats per example.
        exhausted: whether every example of the pool has a label.
    """

    rows: list[dict[str, Any]]
    exhausted: bool = False

    @property
    def labels(self) -> list[int]:
        """Number of labels of every row."""
        return [int(row["labels"]) for row in self.rows]

    @property
    def metrics(self) -> list[str]:
        """What was measured; empty without a test part."""
        return [key for key in (self.rows[0] if self.rows else {}) if key not in ("round", "labels", "queried")]

    def curve(self, metric: str) -> list[float]:
        """A metric of every row.

        Raises:
            KeyError: if it was not measured.
        """
        if metric not in self.metrics:
            raise KeyError(f"{metric!r} was not measured (measured: {', '.join(self.metrics) or 'nothing'})")
        return [float(row[metric]) for row in self.rows]

    def labels_needed(self, metric: str, level: float) -> int | None:
        """The number of labels of the first row that reaches a level; ``None`` if none does.

        Args:
            metric: ``"accuracy"``, or one that is better when lower: ``"rmse"``, ``"nll"``.
            level: in the metric's unit.
        """
        sign = -1.0 if metric in LOWER_IS_BETTER else 1.0
        reached = (n for n, value in zip(self.labels, self.curve(metric), strict=True) if sign * value >= sign * level)
        return next(reached, None)

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"rows": self.rows, "exhausted": self.exhausted}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ActiveResult:
        """Undoes :meth:`to_dict`."""
        return cls([dict(row) for row in data["rows"]], bool(data["exhausted"]))
