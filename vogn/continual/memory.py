"""A few examples of a task that are kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

_CHOICE_STREAM = 0x3E30


@dataclass
class Memory:
    """Examples of one task.

    Args:
        inputs: ``(M, ...)``.
        targets: ``(M, ...)``.
        head: of the task.
        examples: number of examples that the task had.
        outputs: what the network said about them when the task ended, ``(M, K)``; ``None`` if that is not kept.
    """

    inputs: Tensor
    targets: Tensor
    head: int
    examples: int
    outputs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.inputs)

    def state(self) -> dict[str, Any]:
        """Tensors and plain data."""
        return asdict(self)


def memories_from_state(states: Sequence[Mapping[str, Any]]) -> list[Memory]:
    """The memories with these :meth:`Memory.state`."""
    return [Memory(**state) for state in states]


def at_random(batches: Sequence[tuple[Tensor, Tensor]], size: int | None, seed: int, head: int) -> Memory:
    """``size`` examples without replacement, all of them if they are fewer or ``size`` is ``None``."""
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    count = len(x)
    if size is not None and size < count:
        generator = np.random.default_rng([_CHOICE_STREAM, seed])
        chosen = torch.from_numpy(np.sort(generator.choice(count, size, replace=False))).to(x.device)
        x, y = x[chosen], y[chosen]
    return Memory(x.detach().clone(), y.detach().clone(), head, count)


def most_uncertain(
    batches: Sequence[tuple[Tensor, Tensor]], size: int, head: int, probabilities: Callable[[Tensor], Tensor]
) -> Memory:
    """The memorable examples: of every class the same number (to one) with the largest ``sum_k p_k (1 - p_k)``.

    Args:
        batches: of the task.
        size: number of examples, all of them if they are fewer.
        head: of the task.
        probabilities: from inputs to class probabilities ``(N, K)``.

    Source: Pan et al. (2020).
    """
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    scores = torch.cat([(p * (1 - p)).sum(-1) for p in (probabilities(inputs) for inputs, _ in batches)])
    order = scores.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)  # place of an example among those of its class
    for label in y.unique():
        own = order[y[order] == label]
        ranks[own] = torch.arange(len(own), device=own.device)
    chosen = order[ranks[order].argsort(stable=True)][:size].sort().values
    return Memory(x[chosen].detach().clone(), y[chosen].detach().clone(), head, len(x))


def check_size(size: int | None) -> None:
    """A memory holds an example at least.

    Raises:
        ValueError: if it does not.
    """
    if size is not None and size < 1:
        raise ValueError(f"memory={size} must hold at least one example of a task")
