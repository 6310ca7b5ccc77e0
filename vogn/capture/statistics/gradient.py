"""The mini-batch gradient as a single row (Adam's statistic)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from vogn.capture.statistics.base import Statistic
from vogn.linalg.rows import GradientRow

if TYPE_CHECKING:
    from vogn.capture.collector import Collector
    from vogn.capture.partition import Block


class Gradient(Statistic):
    """``C_hat = G G^T`` with the mini-batch gradient ``G``: about ``1 / batch size`` of the empirical Fisher."""

    NAME = "gradient"
    PASSES = "the finished gradient, no pass of its own"
    CHANNEL = "rows"
    WHEN = frozenset({"step"})

    def on_step(self, collector: Collector, block: Block, gradient: Tensor) -> None:
        """See :meth:`Statistic.on_step`."""
        leaves = block.structure.observe(collector.state_of(block), GradientRow(gradient))
        collector.add(block, leaves, "step", rows=1)
