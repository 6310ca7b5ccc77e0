"""A whole step of a block whose curvature does not enter it, in one pass over its numbers.

Where every step of the chain adds multiples of gradient and mean, as frozen coefficients and the prior do, or is the
momentum, a step is that of gradient descent: parameters and gradients are read where they lie, and only the momentum is
a block vector. All other blocks go through the chain's steps one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor

from vogn.capture.partition import Block
from vogn.distributed import Placement
from vogn.kernels.dispatch import fitting
from vogn.kernels.reference import LinearBlock, LinearStep
from vogn.linalg.layout import Lines, lines
from vogn.optim.evidence import anneal
from vogn.optim.functional import check_rate
from vogn.optim.steps import Momentum, Step
from vogn.types import State


@dataclass(frozen=True)
class LinearForm:
    """A chain of steps that may be linear, around at most one momentum.

    Args:
        before: what changes the gradient on its way into the momentum.
        momentum: ``None`` where the chain has none.
        after: what changes what leaves it.
    """

    before: Sequence[Step]
    momentum: Momentum | None
    after: Sequence[Step]

    def factors(
        self, memory: Mapping[str, Tensor], group: Mapping[str, Any]
    ) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """The factors of gradient and mean before the momentum, and of momentum and mean after it; ``None`` where a
        step is not linear now."""
        found = []
        for steps in (self.before, self.after):
            a, b = 1.0, 0.0
            for step in steps:
                factors = step.linear(memory, group)
                if factors is None:
                    return None
                a, b = factors[0] * a, factors[0] * b + factors[1]
            found.append((a, b))
        return found[0], found[1]


def linear_form(chain: Sequence[Step]) -> LinearForm | None:
    """The form of a chain; ``None`` where a step is never linear or wants to be called."""
    momentum, at = None, len(chain)
    for k, step in enumerate(chain):
        if type(step) is Momentum and momentum is None:
            momentum, at = step, k
        elif not _may_be_linear(type(step)):
            return None
    return LinearForm(chain[:at], momentum, chain[at + 1 :])


@cache
def _may_be_linear(kind: type[Step]) -> bool:
    """Whether ``linear`` speaks of the class's own call, and nothing else would miss the block."""
    speaks = next(base for base in kind.__mro__ if "linear" in vars(base) or "__call__" in vars(base))
    called = kind.before is not Step.before or kind.after is not Step.after
    return speaks is not Step and "linear" in vars(speaks) and not called


class LinearPass(NamedTuple):
    """What computes the new mean and momentum of a block, with others in one go.

    Args:
        momentum: of the chain.
        entering, leaving: see :meth:`LinearForm.factors`.
        kernel: one of ``linear_step``.
        block: what moves.
        gradients: of all its parameters.
        places: of its parameters in the block vector.
        memory: the block's memory before the step.
        group: its param group.
        divisor: what ``.grad`` is to be divided by.
    """

    momentum: Momentum | None
    entering: tuple[float, float]
    leaving: tuple[float, float]
    kernel: Callable[[Sequence[LinearBlock]], LinearStep]
    block: Block
    gradients: Sequence[Tensor]
    places: Sequence[Lines]
    memory: State
    group: Mapping[str, Any]
    divisor: float

    def operands(self) -> tuple[LinearBlock, State]:
        """Those of the kernel, and the block's memory after the step, but for the momentum; writes nothing.

        Raises:
            NonFiniteStatisticsError: if the learning rate is beyond the range of the block's numbers.
        """
        block, group, memory = self.block, self.group, dict(self.memory)
        rate = float(group["lr"]) / anneal(group)
        check_rate(block.name, rate, group, block.curvature_dtype)
        share, average = 1.0, None
        if self.momentum is not None and self.momentum.averages(memory, group):
            like = memory.get("momentum")
            like = block.parameters[0].new_empty(block.layout.block_shape) if like is None else like
            share = self.momentum.share(memory, like, group)
            average = memory["momentum"]
        entering = self.entering[0] / self.divisor, self.entering[1]
        found = LinearBlock(
            block.parameters, self.gradients, average, self.places, rate, share, entering, self.leaving
        )
        return found, memory


def linear_steps(passes: Sequence[LinearPass]) -> Iterator[tuple[Sequence[LinearPass], list[State], LinearStep]]:
    """Passes that one kernel computes, the memories of their blocks after the step, and what it has computed; nothing
    is written.

    Raises:
        NonFiniteStatisticsError: if a learning rate is beyond the range of the numbers.
    """
    for kernel in dict.fromkeys(each.kernel for each in passes):
        own = [each for each in passes if each.kernel is kernel]
        operands, memories = [], []
        for each in own:
            operand, memory = each.operands()
            operands.append(operand)
            memories.append(memory)
        step = kernel(operands)
        for memory, (_, momentum) in zip(memories, step.blocks, strict=True):
            if momentum is not None:
                memory["momentum"] = momentum
        yield own, memories, step


def fitting_linear_pass(
    form: LinearForm, block: Block, placement: Placement, memory: State, group: Mapping[str, Any], divisor: float
) -> LinearPass | None:
    """The pass that computes a block's step; ``None`` where the chain is to do it.

    Args:
        form: of the chain.
        block: has a gradient.
        placement: what of it this process holds.
        memory: the block's memory before the step.
        group: its param group, which has no curvature.
        divisor: what ``.grad`` is to be divided by.
    """
    factors = None if placement.divided else form.factors(memory, group)
    if factors is None:
        return None
    gradients = [parameter.grad for parameter in block.parameters if parameter.grad is not None]
    average = [memory["momentum"]] if "momentum" in memory else []
    if len(gradients) < len(block.parameters):
        return None
    kernel, places = fitting("linear_step", *block.parameters, *gradients, *average), lines(block.layout)
    if kernel is None or places is None:
        return None
    return LinearPass(form.momentum, *factors, kernel, block, gradients, places, memory, group, divisor)
