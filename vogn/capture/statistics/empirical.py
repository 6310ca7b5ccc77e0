"""Empirical Fisher: per-example gradients at the true labels, read off the user's own backward pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vogn.announcement import LikelihoodCall
from vogn.capture.statistics.base import Statistic, check_examples_option, kept, share_of, term_weights
from vogn.errors import UnsupportedObservationError
from vogn.linalg.rows import AnyRows

if TYPE_CHECKING:
    from vogn.capture.collector import Collector
    from vogn.capture.partition import Block


class Empirical(Statistic):
    """``C_hat = mean_n g_n g_n^T`` with ``g_n`` the gradient of example ``n``'s loss.

    Layers with a rule cost nothing but their own products; bare parameters are measured in a pass of our own when a
    likelihood is evaluated.

    Args:
        examples: measure the first so many examples of every batch instead of all.
    """

    NAME = "empirical"
    PASSES = "the user's backward, no pass of its own"
    CHANNEL = "rows"
    WHEN = frozenset({"backward", "likelihood"})
    NEEDS_PAIRS = True

    def __init__(self, examples: int | None = None) -> None:
        self.examples = check_examples_option(examples)

    @property
    def reads_user_rows(self) -> bool:
        """See :attr:`Statistic.reads_user_rows`."""
        return self.examples is None

    def on_rows(self, collector: Collector, block: Block, rows: AnyRows) -> None:
        """See :meth:`Statistic.on_rows`."""
        collector.note_sum(block, rows)
        leaves = block.structure.observe(collector.state_of(block), share_of(rows, self.examples))
        collector.add(block, leaves, "user", rows=rows.count)

    def on_likelihood(self, collector: Collector, call: LikelihoodCall) -> None:
        """Measure the blocks with bare parameters."""
        blocks = [block for block in collector.blocks if block.has_bare]
        if not blocks:
            return
        if call.targets is None:
            raise UnsupportedObservationError(
                f"the empirical Fisher of {blocks[0].name!r} needs the targets: call opt.observe(outputs, likelihood, "
                "targets)"
            )
        outputs, targets = kept(call.outputs.detach(), call.mask), kept(call.targets, call.mask)
        score = call.likelihood.score(outputs, targets) * term_weights(call)
        for block, rows in collector.own_rows(call, score.unsqueeze(0), blocks):
            leaves = block.structure.observe(collector.state_of(block), share_of(rows, self.examples))
            collector.add(block, leaves, "own", rows=rows.count)
