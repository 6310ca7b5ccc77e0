"""The ledger: un-normalised evidence of all blocks between two steps, and its one normalisation.

A leaf of degree ``d`` in the output gradients becomes ``leaf * scale^d / count``. Concatenated leaves are divided by
``sqrt(count)``, leaves of degree 0 by the number of rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from vogn.capture.partition import Block
from vogn.structures.base import Structure
from vogn.types import Observation

Source = Literal["user", "own", "exit", "step"]
"""Where evidence comes from: the user's backward, a pass of our own over the sum of the losses, differences of
``.grad`` at the end of a context, or the finished gradient at ``step()``."""


@dataclass
class Record:
    """Un-normalised leaves of one block from one source."""

    leaves: Observation = field(default_factory=dict)
    rows: int = 0


@dataclass(frozen=True)
class _Pending:
    """What a pass of our own has measured for a likelihood call whose backward has not begun."""

    terms: int
    block: Block
    leaves: Observation
    rows: int
    probe: bool

    def share(self, announced: int) -> Observation:
        """Leaves of a mean over ``terms`` loss terms, as part of a loss that counts ``announced`` of them."""
        ratio = announced / self.terms
        if ratio == 1.0:
            return self.leaves
        power = 1.0 if self.probe else 0.5  # rows are products of two output gradients, probes are linear in the loss
        degree = self.block.structure.DEGREE
        return {key: leaf * ratio ** (power * degree[key]) for key, leaf in self.leaves.items()}


class Ledger:
    """Evidence by source and block, and the number of loss terms behind it."""

    def __init__(self) -> None:
        self.records: dict[Source, dict[str, Record]] = {}
        self.probed: set[str] = set()
        """Names of the blocks that a probe statistic has measured."""
        self.count = 0
        """Loss terms of the backward passes that have begun."""
        self.announced = 0
        """Loss terms of the likelihood calls whose backward has not begun."""
        self._pending: list[_Pending] = []

    def copy(self) -> Ledger:
        """The same evidence in an independent ledger, without what is pending."""
        other = Ledger()
        other.records = {
            source: {name: replace(record) for name, record in records.items()}
            for source, records in self.records.items()
        }
        other.probed, other.count = set(self.probed), self.count
        return other

    def only_pending(self) -> Ledger:
        """A ledger that keeps nothing but the likelihood calls whose backward has not begun."""
        other = Ledger()
        other.announced, other._pending = self.announced, self._pending
        return other

    def announce(self, terms: int) -> None:
        """A likelihood has been evaluated; the heads of one loss share their examples."""
        self.announced = max(self.announced, terms)

    def add(self, block: Block, leaves: Observation, source: Source, *, rows: int, probe: bool) -> None:
        """Add evidence of a backward pass that has begun."""
        if probe:
            self.probed.add(block.name)
        record = self.records.setdefault(source, {}).setdefault(block.name, Record())
        record.leaves = merge(block.structure, record.leaves, leaves)
        record.rows += rows

    def expect(self, block: Block, leaves: Observation, *, terms: int, rows: int, probe: bool) -> None:
        """Add evidence for gradients yet to come."""
        self._pending.append(_Pending(terms, block, leaves, rows, probe))

    def settle(self) -> None:
        """A backward pass begins: its examples count once, however many heads its loss has."""
        pending, self._pending = self._pending, []
        for item in pending:
            self.add(item.block, item.share(self.announced), "own", rows=item.rows, probe=item.probe)
        self.count += self.announced
        self.announced = 0


def merge(structure: Structure, old: Observation, new: Observation) -> Observation:
    """Add or concatenate the leaves of two micro-batches."""
    if not old:
        return new
    join: Callable[[Tensor, Tensor], Tensor] = (
        torch.add if structure.REDUCE == "sum" else lambda x, y: torch.cat([x, y])
    )
    return old | {key: join(old[key], leaf) if key in old else leaf for key, leaf in new.items()}


def normalise(structure: Structure, leaves: Observation, *, scale: float, count: float, rows: int) -> Observation:
    """``leaf * scale^degree / count`` for every leaf; see the module's text."""
    out = {}
    for key, leaf in leaves.items():
        degree = structure.DEGREE[key]
        divisor = math.sqrt(count) if structure.REDUCE == "concat" else count if degree else rows
        factor = scale**degree / divisor
        out[key] = leaf if factor == 1.0 else leaf * factor
    return out
