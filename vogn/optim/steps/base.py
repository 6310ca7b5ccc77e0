"""The interface of a step: one transform in the chain that turns gradients into updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vogn.structures.base import Structure
from vogn.types import State


@dataclass
class BlockView:
    """What a chain may know about one block. All tensors are block vectors in at least float32.

    Args:
        name: block name.
        structure: matrix family of the block.
        state: its curvature state after this step's update.
        memory: the steps' own tensors of this block, kept in checkpoints; ``"curvature_weight"`` is the total weight of
            the evidence in ``C`` (1 unless the average started at zero).
        group: the param group: lr, weight_decay, damping, momentum ...
        mean: current mean.
        gradient: likelihood gradient of the mean loss.
    """

    name: str
    structure: Structure
    state: State
    memory: dict[str, Tensor]
    group: dict[str, Any]
    mean: Tensor
    gradient: Tensor


@dataclass
class StepContext:
    """What the whole chain shares.

    Args:
        blocks: views of all blocks that take part in this step, in the order of the updates.
        step: number of finished optimizer steps.
    """

    blocks: Sequence[BlockView]
    step: int


class Step(ABC):
    """One transform over the updates of *all* blocks (a KL clip sums them). Frozen configuration, no tensors.

    The update that leaves the chain is subtracted from the mean, times ``lr``.
    """

    @abstractmethod
    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """Transform the updates; may write to ``context.blocks[i].memory``."""
