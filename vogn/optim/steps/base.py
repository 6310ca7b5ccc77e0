"""The interface of a step: one transform in the chain that turns gradients into updates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vogn.capture.objective import Objective
from vogn.capture.places import Places
from vogn.capture.reweighting import ExampleWeights
from vogn.distributed import Replicas
from vogn.linalg.layout import Layout
from vogn.structures.base import Structure
from vogn.types import State

Scope = Literal["element", "block", "model"]


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
        terms: number of loss terms behind this step's observation of the block, 0 if it was not observed.
        counts: ``False`` if another process holds the same and counts it in sums over all blocks.
        layout: how the block vector is packed; ``None`` where several blocks are computed together.
        parameters: those of the block in the order of the layout, with the means in them; empty where ``layout`` is
            ``None``.
    """

    name: str
    structure: Structure
    state: State
    memory: dict[str, Tensor]
    group: dict[str, Any]
    mean: Tensor
    gradient: Tensor
    terms: float = 0.0
    counts: bool = True
    layout: Layout | None = None
    parameters: tuple[nn.Parameter, ...] = ()


@dataclass(frozen=True)
class Passed:
    """Blocks whose whole step a kernel has computed: what :class:`ClipElements` would have counted of them.

    Args:
        clipped: how many elements it has clipped, a single number on the device of the blocks.
        elements: how many there are.
        counts: see :class:`BlockView`.
    """

    clipped: Tensor
    elements: int
    counts: bool = True


@dataclass
class StepContext:
    """What the whole chain shares.

    Args:
        blocks: views of all blocks that take part in this step, in the order of the updates; where processes divide the
            blocks among themselves, of the blocks or parts of blocks that this one holds.
        step: number of finished optimizer steps.
        notes: single numbers, by name, that steps leave for :meth:`vogn.NaturalGradient.diagnostics`, which reports
            their averages over the steps; tensors stay on their device.
        objective: the closure of this step, if it was a :class:`vogn.Objective`.
        average: the mean of a number over all processes.
        scratch: what a step's call leaves for its :meth:`Step.after`.
        groups: param groups of all blocks that take part, whoever holds them; by default those of ``blocks``.
        over_processes: sum of everybody's number where processes divide the blocks among themselves, else ``None``.
        passed: blocks that take part, but whose update is none of the chain's: a kernel has clipped it.
    """

    blocks: Sequence[BlockView]
    step: int
    notes: dict[str, Tensor] = field(default_factory=dict)
    objective: Objective | None = None
    average: Callable[[Tensor], Tensor] = lambda number: number
    scratch: dict[str, Any] = field(default_factory=dict)
    groups: Sequence[Mapping[str, Any]] = ()
    over_processes: Callable[[Tensor], Tensor] | None = None
    passed: Sequence[Passed] = ()

    def __post_init__(self) -> None:
        self.groups = self.groups or [block.group for block in self.blocks]

    def total(self, numbers: Sequence[Tensor], of_passed: Sequence[Tensor] = ()) -> Tensor:
        """The sum over all blocks, whoever holds them, of one number per block in ``blocks``.

        Every process must come here equally often: let nothing but ``groups`` and the step's own fields decide.

        Args:
            numbers: of ``blocks``.
            of_passed: of those in ``passed``, or nothing.
        """
        all_numbers = [*numbers, *of_passed]
        if self.over_processes is None:
            return torch.stack([number.to(all_numbers[0]) for number in all_numbers]).sum()
        counts = [block.counts for block in self.blocks] + [passed.counts for passed in self.passed if of_passed]
        mine = [number.double() for number, counted in zip(all_numbers, counts, strict=True) if counted]
        return self.over_processes(torch.stack(mine).sum() if mine else torch.zeros((), dtype=torch.float64))


class Step(ABC):
    """One transform over the updates of *all* blocks (a KL clip sums them). Frozen configuration, no tensors.

    The update that leaves the chain is subtracted from the mean, times ``lr``.

    Class attributes:
        REQUIRES: what the step needs beside gradients and curvature: ``"objective"`` (``opt.step`` must be given a
            :class:`vogn.Objective`).
        SCOPE: what one element of the result depends on, beside :meth:`StepContext.total`: the same ``"element"`` of
            the block's tensors (through an elementwise structure), the whole ``"block"``, or all blocks (``"model"``).
            Where processes hold shards, they divide no more than that allows. What a step keeps in a block's memory are
            block vectors and single numbers, unless its scope is ``"model"``. That scope is also for steps whose call
            evaluates the loss or whose :meth:`example_weights` read the memory: all processes then have all blocks.
    """

    REQUIRES: ClassVar[frozenset[str]] = frozenset()
    SCOPE: ClassVar[Scope] = "model"

    @abstractmethod
    def __call__(self, updates: list[Tensor], context: StepContext) -> list[Tensor]:
        """Transform the updates; may put new tensors into ``context.blocks[i].memory``, never change old ones, or the
        updates that are given, in place: a refused step keeps them."""

    def prepare(self, memory: dict[str, Tensor], mean: Tensor, group: Mapping[str, Any]) -> None:  # noqa: B027
        """Make what the step keeps of a block before the block's first step, so that states are whole.

        Args:
            memory: the block's memory, to be written to.
            mean: the block vector of the mean.
            group: the block's param group.
        """

    def before(self, groups: list[dict[str, Any]], terms: int) -> None:  # noqa: B027
        """A step begins; may change group entries (schedules), of all processes alike: let nothing but the arguments
        and the step's own fields decide. A refused step undoes the changes.

        Args:
            groups: the param groups.
            terms: number of loss terms behind this step's evidence, of all processes; 0 if it is not known.
        """

    def after(self, means: list[Tensor], context: StepContext) -> None:  # noqa: B027
        """The step is done and the new means are in the model; may change group entries (damping policies), of all
        processes alike.

        Args:
            means: the new means as block vectors, in the order of ``context.blocks``: of what this process holds.
            context: that of the call.
        """

    def newton_rate(self, group: Mapping[str, Any]) -> float:
        """The factor by which the step makes the learning rate of a full Newton step larger; 1 for most."""
        return 1.0

    def linear(self, memory: Mapping[str, Tensor], group: Mapping[str, Any]) -> tuple[float, float] | None:
        """The numbers ``(a, b)`` where all that the call does for a block in this step is ``u <- a u + b m``; ``None``
        for most steps.

        Where all steps of a chain say so, beside :class:`Momentum`, the block may be computed in one pass
        (:mod:`vogn.optim.linear_pass`), and calls do not see it. A subclass that changes the call says so again.

        Args:
            memory: the block's memory.
            group: the block's param group.
        """
        return None

    def without_curvature(self, group: Mapping[str, Any]) -> str:
        """Why a group has no curvature (any more) and measures none; ``""`` if it has."""
        return ""

    def places(self, group: Mapping[str, Any], indices: Tensor | None, replicas: Replicas) -> Places | None:
        """Where the examples of a new context stand in the data set, if the step wants to know.

        Args:
            group: the first param group.
            indices: what the loop has said.
            replicas: the processes that train copies of the model.
        """
        return None

    def example_weights(self, memory: Mapping[str, Tensor], group: Mapping[str, Any]) -> ExampleWeights | None:
        """The weights of the examples in a block's gradients, where they shall not count alike.

        Args:
            memory: the block's memory.
            group: the block's param group.
        """
        return None
