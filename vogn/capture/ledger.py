"""The ledger: un-normalised evidence of all blocks between two steps."""

from __future__ import annotations

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
    """What a pass of our own has measured for a likelihood call."""

    block: Block
    leaves: Observation
    rows: int
    probe: bool

    def share(self, terms: int, announced: int) -> Observation:
        """Leaves of a mean over ``terms`` loss terms, as part of a loss that counts ``announced`` of them."""
        ratio = announced / terms
        if ratio == 1.0:
            return self.leaves
        power = 1.0 if self.probe else 0.5  # rows are products of two output gradients, probes are linear in the loss
        degree = self.block.structure.DEGREE
        return {key: leaf * ratio ** (power * degree[key]) for key, leaf in self.leaves.items()}


@dataclass(eq=False)
class Announcement:
    """A likelihood call whose backward has not ended.

    Args:
        terms: its loss terms.
        examples: size of its batch.
        mask: its loss terms that count, ``None`` if all do.
        touched: the layer calls that a pass of our own found behind it.
    """

    terms: int
    examples: int
    mask: Tensor | None = None
    touched: set[int] = field(default_factory=set)
    pending: list[_Pending] = field(default_factory=list)


class Ledger:
    """Evidence by source and block, and the number of loss terms behind it."""

    def __init__(self) -> None:
        self.records: dict[Source, dict[str, Record]] = {}
        self.probed: set[str] = set()
        """Names of the blocks that a probe statistic has measured."""
        self.count = 0
        """Loss terms of the backward passes so far."""
        self.open: list[Announcement] = []
        """Likelihood calls that no backward has reached."""
        self.reached: list[Announcement] = []
        """Likelihood calls that the present backward has reached."""

    @property
    def empty(self) -> bool:
        """Whether nothing has been observed."""
        return not self.records

    def observed(self, block: Block) -> bool:
        """Whether there is evidence about a block; where another process holds it, a record without leaves."""
        return any(block.name in records for records in self.records.values())

    def loss_terms(self, block: Block) -> int:
        """Number of loss terms behind the gradients: announced by a likelihood, else the number of rows."""
        record = self.records.get("user", {}).get(block.name)
        return self.count or (record.rows if record is not None else 0)

    def copy(self) -> Ledger:
        """The same evidence in an independent ledger, without what is pending."""
        other = Ledger()
        other.records = {
            source: {name: replace(record) for name, record in records.items()}
            for source, records in self.records.items()
        }
        other.probed, other.count = set(self.probed), self.count
        return other

    def only_open(self) -> Ledger:
        """A ledger that keeps nothing but the likelihood calls whose backward has not begun."""
        other = Ledger()
        other.open = self.open
        return other

    def announce(self, terms: int, examples: int, mask: Tensor | None = None) -> Announcement:
        """A likelihood has been evaluated."""
        self.open.append(Announcement(terms, examples, mask))
        return self.open[-1]

    def reach(self, announcement: Announcement) -> None:
        """A backward pass has reached the outputs of a likelihood call."""
        if announcement in self.open:
            self.open.remove(announcement)
            self.reached.append(announcement)

    def add(self, block: Block, leaves: Observation, source: Source, *, rows: int, probe: bool) -> None:
        """Add evidence of a backward pass that has begun."""
        if probe:
            self.probed.add(block.name)
        record = self.records.setdefault(source, {}).setdefault(block.name, Record())
        record.leaves = merge(block.structure, record.leaves, leaves)
        record.rows += rows

    def expect(self, block: Block, leaves: Observation, *, rows: int, probe: bool) -> None:
        """Add evidence for the gradients of the likelihood call that was announced last."""
        self.open[-1].pending.append(_Pending(block, leaves, rows, probe))

    def settle(self) -> None:
        """A backward pass has ended.

        The heads of one forward pass share their examples, which count once; different forward passes have different
        examples. Likelihood calls that no backward reaches (logging, evaluation) never count.
        """
        groups: list[list[Announcement]] = []
        for announcement in self.reached:
            for group in groups:
                if not announcement.touched or any(announcement.touched & other.touched for other in group):
                    group.append(announcement)
                    break
            else:
                groups.append([announcement])
        for group in groups:
            terms = max(announcement.terms for announcement in group)
            self.count += terms
            for announcement in group:
                for item in announcement.pending:
                    leaves = item.share(announcement.terms, terms)
                    self.add(item.block, leaves, "own", rows=item.rows, probe=item.probe)
        self.reached = []


def merge(structure: Structure, old: Observation, new: Observation) -> Observation:
    """Add or concatenate the leaves of two micro-batches."""
    if not old:
        return new
    join: Callable[[Tensor, Tensor], Tensor] = (
        torch.add if structure.REDUCE == "sum" else lambda x, y: torch.cat([x, y])
    )
    return old | {key: join(old[key], leaf) if key in old else leaf for key, leaf in new.items()}
