"""Layer inputs alone: no gradient and no label takes part in the curvature."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vogn.announcement import LikelihoodCall
from vogn.capture.statistics.base import Statistic
from vogn.linalg.rows import AnyRows, Rows

if TYPE_CHECKING:
    from vogn.capture.collector import Collector
    from vogn.capture.partition import Block


class Inputs(Statistic):
    """``C_hat = I_out (x) mean_n a_n a_n^T`` with ``a_n`` a layer's input, read off the user's own pass.

    The scale of the loss, its targets and its likelihood do not enter. Only structures that read no output gradients
    take it. Which examples and positions are padding is seen from masks and gradients, as for all rows. The input of
    an elementwise parameter is one: a bare parameter is observed, without a pass of its own, when a likelihood is
    evaluated.
    """

    NAME = "inputs"
    PASSES = "the layers' inputs, no pass of its own"
    CHANNEL = "rows"
    WHEN = frozenset({"backward", "likelihood"})
    NEEDS_PAIRS = True
    GIVES = frozenset({"inputs", "outputs"})

    def on_rows(self, collector: Collector, block: Block, rows: AnyRows) -> None:
        """See :meth:`Statistic.on_rows`."""
        collector.note_sum(block, rows)
        leaves = block.structure.observe(collector.state_of(block), rows)
        collector.add(block, leaves, "user", rows=rows.count)

    def on_likelihood(self, collector: Collector, call: LikelihoodCall) -> None:
        """Count the blocks with bare parameters."""
        examples = call.outputs.shape[0]
        for block in collector.blocks:
            if not block.has_bare:
                continue
            *lead, d_out, _ = block.layout.block_shape
            ones = torch.ones((), dtype=block.curvature_dtype, device=block.parameters[0].device)
            rows = Rows(ones.expand(*lead, examples, 1, 1), ones.expand(*lead, 0, examples, 1, d_out))
            leaves = block.structure.observe(collector.state_of(block), rows)
            collector.add(block, leaves, "own", rows=examples)
