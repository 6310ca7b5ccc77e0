"""The mini-batch gradient as a single row (Adam's statistic)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from vogn.capture.statistics.base import Statistic
from vogn.linalg.rows import GradientRow

if TYPE_CHECKING:
    from vogn.capture.collector import Collector
    from vogn.capture.partition import Block


class Gradient(Statistic):
    """``C_hat = B G G^T`` with the mini-batch gradient ``G``.

    With ``B = 1`` this is about ``1 / batch size`` of the empirical Fisher. With the batch size as ``B`` its
    expectation over batches is the empirical Fisher plus ``B - 1`` times the outer product of the mean gradient.

    Args:
        batch_size: ``B``, > 0.

    Raises:
        ValueError: if it is not positive.
    """

    NAME = "gradient"
    PASSES = "the finished gradient, no pass of its own"
    CHANNEL = "rows"
    WHEN = frozenset({"step"})

    def __init__(self, batch_size: float = 1.0) -> None:
        if not 0 < batch_size < math.inf:
            raise ValueError(
                f"batch_size={batch_size} must be a positive number: that of the examples behind one gradient, all "
                "processes together, or 1 for the gradient's own second moment"
            )
        self.batch_size = batch_size

    def on_step(self, collector: Collector, block: Block, gradient: Tensor) -> None:
        """See :meth:`Statistic.on_step`."""
        row = gradient if self.batch_size == 1.0 else gradient * self.batch_size**0.5
        leaves = block.structure.observe(collector.state_of(block), GradientRow(row))
        collector.add(block, leaves, "step", rows=1)
