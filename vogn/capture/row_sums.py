"""The check that a block's gradient is the sum of the rows that were observed of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from vogn.capture.partition import Block
from vogn.linalg.rows import AnyRows

SUM_TOLERANCE = 0.05
"""Relative difference between a gradient and the sum of its rows above which :class:`RowSums` warns: far above the
rounding of half precision."""


class RowSums:
    """Sums of the rows of blocks; every block is checked in the first context that begins without gradients.

    Args:
        blocks: the optimizer's blocks.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._unchecked = {block.name for block in blocks}
        self._fresh = False
        self._sums: dict[str, Tensor] = {}

    def begin(self, *, fresh: bool) -> None:
        """A context begins; ``fresh``: its gradients start at nothing."""
        self._fresh = fresh
        self._sums.clear()

    def wants(self, block: Block) -> bool:
        """Whether the block's rows are summed in this context."""
        return self._fresh and block.name in self._unchecked

    def add(self, block: Block, rows: AnyRows) -> None:
        """Add rows of a block, if it is one of those to be checked."""
        if self.wants(block):
            device = block.parameters[0].device
            ones = torch.ones(rows.columns, rows.count, dtype=block.curvature_dtype, device=device)
            total = rows.rmatvec(ones)
            self._sums[block.name] = self._sums[block.name] + total if block.name in self._sums else total

    def check(
        self, blocks: Iterable[Block], gradient_of: Callable[[Block], Tensor | None], averaged: Callable[[Block], bool]
    ) -> None:
        """Warn about weights whose gradient comes only in part through their layer; once per block.

        Args:
            blocks: the optimizer's blocks.
            gradient_of: what the context has added to a block's gradient; ``None`` if nothing.
            averaged: whether that is an average over processes, which these rows are not.
        """
        for block in blocks:
            if block.name not in self._sums:
                continue
            self._unchecked.discard(block.name)
            if averaged(block):
                continue
            gradient, total = gradient_of(block), self._sums[block.name]
            if gradient is None or not bool(total.isfinite().all()):
                continue
            if not bool((gradient - total).norm() <= SUM_TOLERANCE * gradient.norm()):
                warnings.warn(
                    f"block {block.name!r}: part of its gradient does not come through its layer's forward (a weight "
                    "used elsewhere too, or a penalty in the loss): its curvature covers only the part that does",
                    stacklevel=2,
                )
        self._sums.clear()
