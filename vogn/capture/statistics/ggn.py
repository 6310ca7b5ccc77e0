"""Exact generalised Gauss-Newton: one backward pass per column of the output Hessian's square root."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vogn.announcement import LikelihoodCall
from vogn.capture.statistics.base import Statistic, check_examples_option, kept, share_of, term_weights

if TYPE_CHECKING:
    from vogn.capture.collector import Collector

MANY_COLUMNS = 64


class GGN(Statistic):
    """``C_hat = mean_n J_n^T H_n J_n`` with ``H_n`` the Hessian of the loss in the outputs.

    Args:
        samples: ``None`` for all columns (exact), or a number of random combinations of them (unbiased, cheaper).
        examples: measure the first so many examples of every batch instead of all.
    """

    NAME = "ggn"
    PASSES = "one more backward per output (and per loss term of an example), or per random column"
    CHANNEL = "rows"
    WHEN = frozenset({"likelihood"})
    NEEDS_PAIRS = True
    NEEDS_LIKELIHOOD = True

    def __init__(self, samples: int | None = None, examples: int | None = None) -> None:
        if samples is not None and samples < 1:
            raise ValueError(f"ggn_samples={samples} must be at least 1, or None for the exact GGN")
        self.samples = samples
        self.examples = check_examples_option(examples)

    @property
    def columns_per_example(self) -> tuple[float, str]:
        """See :attr:`Statistic.columns_per_example`."""
        return (1.0, "output") if self.samples is None else (float(self.samples), "")

    def on_likelihood(self, collector: Collector, call: LikelihoodCall) -> None:
        """See :meth:`Statistic.on_likelihood`."""
        columns = call.likelihood.hessian_sqrt(kept(call.outputs.detach(), call.mask))
        weight = term_weights(call)
        if isinstance(weight, Tensor):
            columns = columns * weight.sqrt()
        columns = self._columns(collector, columns)
        for block, rows in collector.own_rows(call, columns, collector.blocks):
            leaves = block.structure.observe(collector.state_of(block), share_of(rows, self.examples))
            collector.add(block, leaves, "own", rows=rows.count)

    def _columns(self, collector: Collector, columns: Tensor) -> Tensor:
        """``(K, N, ...)`` to all columns, one per loss term of an example, or to random combinations of them."""
        terms = math.prod(columns.shape[2:-1])
        if self.samples is not None:
            source = collector.stream("ggn", columns.device)
            count = self.samples

            def draw(rows: Tensor) -> Tensor:
                shape = (count, columns.shape[0], *rows.shape[:-1], 1)
                return torch.randint(0, 2, shape, generator=source, device=rows.device).to(rows.dtype)

            signs = collector.replicas.sharded(draw, columns[0], dim=2)
            return ((2 * signs - 1) * columns).sum(1) * self.samples**-0.5
        if terms > 1:
            flat = columns.flatten(2, -2)
            separate = torch.eye(terms, dtype=columns.dtype, device=columns.device)
            columns = (
                (flat.unsqueeze(1) * separate[None, :, None, :, None]).flatten(0, 1).reshape(-1, *columns.shape[1:])
            )
        if columns.shape[0] > MANY_COLUMNS:
            warnings.warn(
                f"the exact GGN takes {columns.shape[0]} backward passes per batch (one per output and loss term); "
                "ggn_samples=1 gives an unbiased estimate with one",
                stacklevel=2,
            )
        return columns
