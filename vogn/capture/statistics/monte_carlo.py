"""Monte Carlo Fisher: per-example gradients at labels drawn from the model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vogn.announcement import LikelihoodCall
from vogn.capture.statistics.base import Statistic, check_examples_option, kept, share_of, term_weights

if TYPE_CHECKING:
    from vogn.capture.collector import Collector


class MonteCarlo(Statistic):
    """``C_hat = mean_n s_n s_n^T``, ``s_n`` the gradient at a label ``y ~ p(y | x_n, theta)``.

    Args:
        draws: label draws per example, >= 1.
        examples: measure the first so many examples of every batch instead of all.

    One extra backward pass per draw; ``.grad`` never sees it.
    """

    NAME = "mc"
    PASSES = "one more backward per draw of labels"
    CHANNEL = "rows"
    WHEN = frozenset({"likelihood"})
    NEEDS_PAIRS = True
    NEEDS_LIKELIHOOD = True

    def __init__(self, draws: int = 1, examples: int | None = None) -> None:
        if draws < 1:
            raise ValueError(f"draws={draws} must be at least 1")
        self.draws = draws
        self.examples = check_examples_option(examples)

    @property
    def columns_per_example(self) -> tuple[float, str]:
        """See :attr:`Statistic.columns_per_example`."""
        return float(self.draws), ""

    def on_likelihood(self, collector: Collector, call: LikelihoodCall) -> None:
        """See :meth:`Statistic.on_likelihood`."""
        outputs, source = kept(call.outputs.detach(), call.mask), collector.stream("labels", call.outputs.device)
        labels = [
            collector.replicas.sharded(lambda rows: call.likelihood.sample(rows, source), outputs, dim=0)
            for _ in range(self.draws)
        ]
        scores = [call.likelihood.score(outputs, drawn) for drawn in labels]
        weight = term_weights(call)
        factor = (weight.sqrt() if isinstance(weight, torch.Tensor) else weight) * self.draws**-0.5
        for block, rows in collector.own_rows(call, torch.stack(scores) * factor, collector.blocks):
            leaves = block.structure.observe(collector.state_of(block), share_of(rows, self.examples))
            collector.add(block, leaves, "own", rows=rows.count)
