"""The examples that have labels, and those that have none."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from vogn.active.errors import LabelError, PoolError
from vogn.active.labels import LabelRule
from vogn.active.ledger import Ledger
from vogn.active.pool import Pool, checked_inputs
from vogn.errors import CheckpointError

Part = tuple[Tensor, Tensor]
"""Inputs ``(n, ...)`` and targets in the form that the likelihood expects."""


class Labelled:
    """A pool, the labels of some of its examples, and examples from elsewhere.

    Args:
        pool: all examples to ask about.
        rule: what labels look like.
        ledger: labels by number.
        given: labelled examples besides the pool.

    Raises:
        CheckpointError: if the ledger holds what is no label, or of no example of the pool.
    """

    def __init__(self, pool: Pool, rule: LabelRule, ledger: Ledger, given: Part | None) -> None:
        self.pool, self.rule, self.ledger, self.given = pool, rule, ledger, given
        for index in ledger:
            try:
                rule.check(ledger[index], index)
            except LabelError as error:
                raise CheckpointError(f"{ledger.path}: {error}; mend or delete the line") from error
            if not 0 <= index < len(pool):
                raise CheckpointError(f"{ledger.path}: example {index} is not in the pool; each pool needs its folder")
        self.numbers: list[int] = []
        """Of the pool's examples that were learnt from, in order."""

    def first(self, initial: int | Sequence[int] | Tensor, seed: int) -> list[int]:
        """Numbers of the first query.

        Args:
            initial: how many, at random; or the numbers.
            seed: of the random choice.

        Raises:
            ValueError: if there would be nothing to learn from, or numbers are not different ones of the pool.
        """
        size = len(self.pool)
        numbers = [] if isinstance(initial, int) else [int(index) for index in initial]
        if isinstance(initial, int) and initial >= 0:
            numbers = np.random.default_rng(seed).permutation(size)[:initial].tolist()
        elif isinstance(initial, int) or len(set(numbers)) < len(numbers) or any(not 0 <= n < size for n in numbers):
            raise ValueError(f"initial must be >= 0, or hold different numbers from 0 to {size - 1}")
        if not numbers and self.given is None:
            raise ValueError("initial: without labelled= at least one example must be asked for")
        return numbers

    def open(self) -> Tensor:
        """Numbers of the others, increasing, ``(N,)``."""
        mask = torch.ones(len(self.pool), dtype=torch.bool)
        mask[self.numbers] = False
        return mask.nonzero().squeeze(1)

    def inputs(self) -> Tensor | None:
        """Inputs of everything that was learnt from; ``None`` if there is nothing."""
        parts = [] if self.given is None else [self.given[0]]
        if self.numbers:
            parts.append(checked_inputs(self.pool, torch.tensor(self.numbers)))
        return torch.cat(parts) if parts else None

    def data(self, numbers: list[int]) -> Part:
        """Inputs and targets of the given examples and of those with these numbers, which have labels.

        Raises:
            PoolError: if there are none at all.
        """
        parts = [] if self.given is None else [self.given]
        if numbers:
            x = checked_inputs(self.pool, torch.tensor(numbers))
            parts.append((x, self.rule.targets([self.ledger[index] for index in numbers]).to(x.device)))
        if not parts:
            raise PoolError("there is nothing to learn from: ask for some examples (initial >= 1), or give labelled=")
        return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])

    def add(self, index: int, label: object) -> None:
        """Keep a label.

        Raises:
            LabelError: if it is none, or the example has one.
        """
        if index in self.ledger:
            raise LabelError(f"example {index} has a label already; labels are not changed")
        self.ledger.add(index, self.rule.check(label, index))


def check_part(name: str, part: Part | None) -> None:
    """Raise unless inputs and targets are finite and equally many.

    Raises:
        PoolError: naming the part.
    """
    if part is None:
        return
    x, y = part
    if not len(x) or len(x) != len(y):
        raise PoolError(f"{name} holds {len(x)} inputs and {len(y)} targets; as many of both are needed, at least one")
    for what, values in (("inputs", x), ("targets", y)):
        if values.is_floating_point() and not bool(values.isfinite().all()):
            raise PoolError(f"the {what} of {name} hold NaN or infinity")
