"""The interface of a step: one transform in the chain that turns gradients into updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        notes: single numbers, by name, that steps leave for :meth:`vogn.NaturalGradient.diagnostics`, which reports
            their averages over the steps; tensors stay on their device.
    """

    blocks: Sequence[BlockView]
    step: int
    notes: dict[str, Tensor] = field(default_factory=dict)


class Step(ABC):
    """One transform over the updates of *all* blocks (a KL clip sums them). Frozen configuration, no tensors.

    The update that leaves the chain is subtracted from the mean, times ``lr``.
    """

    @abstractmethod
    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """Transform the updates; may put new tensors into ``context.blocks[i].memory``, never change old ones in place:
        a refused step keeps them."""

    def prepare(self, memory: dict[str, Tensor], mean: Tensor, group: Mapping[str, Any]) -> None:  # noqa: B027
        """Make what the step keeps of a block before the block's first step, so that states are whole.

        Args:
            memory: the block's memory, to be written to.
            mean: the block vector of the mean.
            group: the block's param group.
        """
