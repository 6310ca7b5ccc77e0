"""The update of curvature and mean: staged from the evidence, checked, and only then written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vogn.capture.collector import Collector
from vogn.capture.normalisation import require_count
from vogn.capture.objective import Objective
from vogn.capture.partition import Block
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.optim.blocks import BlockTable, Group
from vogn.optim.evidence import TakingPart, anneal, staged_curvature
from vogn.optim.functional import check_finite, evidence_tensors, natural_gradient_step, result_tensors
from vogn.optim.steps import BlockView, StepContext

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient


@dataclass(frozen=True)
class StagedUpdate:
    """New states and means, checked but not written yet.

    Args:
        blocks: the blocks that move.
        views: their new curvature and memory.
        means: their new means, as block vectors.
        context: what the chain's steps shared.
    """

    blocks: Sequence[Block]
    views: Sequence[BlockView]
    means: list[Tensor]
    context: StepContext


def update(optimizer: NaturalGradient, objective: Objective | None = None) -> None:
    """One update from the gradients and observations at hand; see :meth:`vogn.NaturalGradient.step`."""
    table, collector = optimizer._build()
    taking_part = _take_part(optimizer, table, collector)
    if not taking_part:
        return
    _check_requirements(optimizer, objective)
    entries = [dict(group) for group in optimizer.param_groups]
    terms = max(collector.loss_terms(block) for block, _, _ in taking_part)
    for step in optimizer.chain:
        step.before(optimizer.param_groups, terms)
    try:
        staged = _stage(optimizer, table, collector, taking_part, objective)
    except (NonFiniteStatisticsError, NotPositiveDefiniteError):
        collector.clear()  # the next step must not meet this evidence again
        optimizer._contexts.reset()
        optimizer._evidence.record.refused += 1
        for group, old in zip(optimizer.param_groups, entries, strict=True):
            group.update(old)
        raise
    _commit(optimizer, table, staged)
    collector.clear()
    optimizer._contexts.reset()


def _check_requirements(optimizer: NaturalGradient, objective: Objective | None) -> None:
    """The chain's steps have what they need.

    Raises:
        TypeError: if a step compares losses and ``step()`` was not given an objective.
    """
    if objective is None:
        needy = [type(step).__name__ for step in optimizer.chain if "objective" in step.REQUIRES]
        if needy:
            raise TypeError(
                f"{needy[0]} evaluates the loss again: call opt.step(vogn.Objective(model, likelihood, inputs, "
                "targets)) instead of a context and opt.step()"
            )


def _take_part(optimizer: NaturalGradient, table: BlockTable, collector: Collector) -> TakingPart:
    """The blocks with a gradient, the evidence of all processes behind them; none if there is nothing to do.

    Raises:
        MissingCurvatureError: if there are gradients but the curvature has never been observed.
        RuntimeError: if the contexts do not fit ``mc_samples``, or the processes do not agree.
    """
    if optimizer.replicas.size > 1:
        numbers = {"seed": optimizer.seed, "the number of steps": optimizer.param_groups[0]["steps_done"]}
        collector.pool({block: optimizer._contexts.divisor(group) for block, group in table}, numbers)
    taking_part = []
    for block, group in table:
        table.state(block)
        if any(parameter.grad is not None for parameter in block.parameters):
            taking_part.append((block, group, mean_gradient(optimizer, table, collector, block, group)))
    if not optimizer._evidence.may_step(table, collector, taking_part):
        return []
    for block, _, gradient in taking_part:
        for statistic in optimizer.statistics if table.due(block, "observe_every") else ():
            statistic.on_step(collector, block, gradient)
    return taking_part


def mean_gradient(
    optimizer: NaturalGradient, table: BlockTable, collector: Collector, block: Block, group: Group
) -> Tensor:
    """The gradient of the mean loss per example, averaged over weight samples, as a block vector."""
    gradient = table.gradient(block)
    divisor = float(optimizer._contexts.divisor(group))
    if optimizer.loss_reduction == "sum":
        count = collector.loss_terms(block)
        require_count(count)
        divisor = count / optimizer.replicas.size  # averaged over the replicas
    return gradient / divisor if divisor != 1.0 else gradient


def _stage(
    optimizer: NaturalGradient,
    table: BlockTable,
    collector: Collector,
    taking_part: TakingPart,
    objective: Objective | None,
) -> StagedUpdate:
    """Compute the update and check it; nothing is written.

    Raises:
        MissingCurvatureError: if a block moves without any curvature.
        NonFiniteStatisticsError: if a gradient, a statistic or the result is not finite.
        NotPositiveDefiniteError: if a curvature plus its shift has no inverse.
    """
    observations = [collector.finish(block, optimizer._contexts.divisor(group)) for block, group, _ in taking_part]
    measured = any(observations)
    if measured:  # else what is not finite shows in the result
        check_finite(evidence_tensors(taking_part, observations))
    views, rates = [], []
    for (block, group, gradient), observation in zip(taking_part, observations, strict=True):
        optimizer._evidence.check_block(table, collector, block, group, observation, gradient)
        new, mean = staged_curvature(table, block, group, observation), table.mean(block)
        terms = float(collector.loss_terms(block)) if observation else 0.0
        view = BlockView(block.name, block.structure, new["curvature"], new["memory"], group, mean, gradient, terms)
        views.append(view)
        rates.append(float(group["lr"]) / anneal(group))
    context = StepContext(
        views, optimizer.param_groups[0]["steps_done"], objective=objective, average=optimizer.replicas.average
    )
    means = natural_gradient_step(context, optimizer.chain, rates)
    blocks = [block for block, _, _ in taking_part]
    olds = [table.state(block)["curvature"] for block in blocks]
    suspects = [] if measured else list(evidence_tensors(taking_part, observations))
    check_finite(result_tensors(zip(views, means, olds, strict=True)), suspects)
    return StagedUpdate(blocks, views, means, context)


def _commit(optimizer: NaturalGradient, table: BlockTable, staged: StagedUpdate) -> None:
    """Write a checked update and count the step."""
    for block, view, mean in zip(staged.blocks, staged.views, staged.means, strict=True):
        table.state(block).update(curvature=view.state, memory=view.memory)
        table.write(block, mean)
    optimizer._reshard()
    for step in optimizer.chain:
        step.after(staged.means, staged.context)
    optimizer._evidence.record.add(staged.context.notes)
    for group in optimizer.param_groups:
        group["examples_done"] += optimizer._contexts.examples
        if not table.without_curvature(group):
            group["examples_measured"] = group["examples_done"]
        group["steps_done"] += 1
