"""From a query to labels: by hand, or by an oracle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from vogn.active.errors import LabelError
from vogn.active.labelled import Labelled
from vogn.active.pool import checked_inputs

Oracle = Callable[[Tensor, Tensor], Iterable[Any]]
"""From numbers ``(n,)`` and inputs ``(n, ...)`` to their labels, in order: a tensor, a list, or a generator, each of
whose labels is on disk before it is asked for the next."""


def give(examples: Labelled, wanted: list[int], labels: Any, indices: Sequence[int] | Tensor | None) -> None:
    """Keep labels of examples that lack one.

    Args:
        examples: where they are kept.
        wanted: numbers of the examples that lack one.
        labels: one for each index.
        indices: numbers of the examples; ``None``: all that are wanted.

    Raises:
        LabelError: if a label is none, an example was not asked for or has one, or their numbers differ. Labels before
            the wrong one are kept.
    """
    chosen = wanted if indices is None else [int(i) for i in torch.as_tensor(indices).flatten()]
    values = list(labels)
    if len(values) != len(chosen):
        raise LabelError(f"{len(values)} labels were given for {len(chosen)} examples")
    for index, value in zip(chosen, values, strict=True):
        if index not in wanted and index not in examples.ledger:
            raise LabelError(f"example {index} was not asked for; asked for are {wanted[:10]}")
        examples.add(index, value)


def ask(examples: Labelled, wanted: list[int], oracle: Oracle, told: Callable[[int, int], None]) -> None:
    """Have an oracle label examples, each label on disk before the next is asked for.

    Args:
        examples: where they are kept.
        wanted: numbers of the examples.
        oracle: see :data:`Oracle`.
        told: is told (wanted, given) after every label; what it raises ends the asking.

    Raises:
        LabelError: if it gives none, a wrong one, too many or too few; those before are kept.
    """
    if not wanted:
        return
    numbers = torch.tensor(wanted, dtype=torch.int64)
    answers = oracle(numbers, checked_inputs(examples.pool, numbers))
    if not isinstance(answers, Iterable) or (isinstance(answers, Tensor) and answers.ndim == 0):
        kind = type(answers).__name__
        raise LabelError(f"the oracle gave {kind}; it must give one label for each example, in order")
    given = 0
    for value in answers:
        if given == len(wanted):
            raise LabelError(f"the oracle gave more than the {len(wanted)} labels that were asked for")
        examples.add(wanted[given], value)
        given += 1
        told(len(wanted), given)
    if given < len(wanted):
        raise LabelError(
            f"the oracle gave {given} labels for {len(wanted)} examples; they are kept, the other ones will be asked "
            "for again"
        )
