"""The update of curvature and mean: staged from the evidence, checked, and only then written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from vogn.capture.collector import Collector
from vogn.capture.normalisation import require_count
from vogn.capture.partition import Block
from vogn.capture.statistics import Statistic
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
        views: new curvature and memory of the blocks that move, as far as this process holds them.
        means: their new means, as block vectors.
        notes: what the chain's steps noted.
    """

    views: Mapping[Block, BlockView]
    means: Mapping[Block, Tensor]
    notes: Mapping[str, Tensor]


def update(optimizer: NaturalGradient) -> None:
    """One update from the gradients and observations at hand; see :meth:`vogn.NaturalGradient.step`."""
    table, collector = optimizer._build()
    taking_part = _take_part(optimizer, table, collector)
    if taking_part is None:
        return
    try:
        staged = _stage(optimizer, table, collector, taking_part)
    except (NonFiniteStatisticsError, NotPositiveDefiniteError):
        collector.clear()  # the next step must not meet this evidence again
        optimizer._contexts.reset()
        optimizer._evidence.record.refused += 1
        raise
    _commit(optimizer, table, taking_part, staged)
    collector.clear()
    optimizer._contexts.reset()


def _take_part(optimizer: NaturalGradient, table: BlockTable, collector: Collector) -> TakingPart | None:
    """The blocks with a gradient, the evidence of all processes behind them; ``None`` if there is nothing to do.

    Raises:
        MissingCurvatureError: if there are gradients but the curvature has never been observed.
        RuntimeError: if the contexts do not fit ``mc_samples``, or the processes do not agree.
    """
    if optimizer.replicas.size > 1:
        numbers = {"seed": optimizer.seed, "the number of steps": optimizer.param_groups[0]["steps_done"]}
        collector.pool({block: optimizer._contexts.divisor(group) for block, group in table}, numbers)
    blocks: list[tuple[Block, Group]] = []
    gradients: dict[Block, Tensor] = {}
    for block, group in table:
        table.state(block)
        if any(parameter.grad is not None for parameter in block.parameters):
            blocks.append((block, group))
            gradient = mean_gradient(optimizer, table, collector, block, group)
            gradients |= {} if gradient is None else {block: gradient}
    taking_part = TakingPart(blocks, gradients, table.moving(gradients))
    if not optimizer._evidence.may_step(table, collector, taking_part):
        return None
    for block, _ in blocks:
        for statistic in optimizer.statistics if table.due(block, "observe_every") else ():
            _finished(statistic, collector, block, gradients.get(block))
    return taking_part


def _finished(statistic: Statistic, collector: Collector, block: Block, gradient: Tensor | None) -> None:
    """A block's gradient is complete; where another process holds it, that it is observed is all that is known."""
    if gradient is not None:
        statistic.on_step(collector, block, gradient)
    elif "step" in statistic.WHEN:
        collector.add(block, {}, "step", rows=1)


def mean_gradient(
    optimizer: NaturalGradient, table: BlockTable, collector: Collector, block: Block, group: Group
) -> Tensor | None:
    """The gradient of the mean loss per example, averaged over weight samples, as a block vector; ``None`` where
    another process holds the block."""
    gradient = table.gradient(block)
    divisor = float(optimizer._contexts.divisor(group))
    if optimizer.loss_reduction == "sum":
        count = collector.loss_terms(block)
        require_count(count)
        divisor = count / optimizer.replicas.size  # averaged over the replicas
    return gradient / divisor if gradient is not None and divisor != 1.0 else gradient


def _stage(
    optimizer: NaturalGradient, table: BlockTable, collector: Collector, taking_part: TakingPart
) -> StagedUpdate:
    """Compute the update and check it; nothing is written.

    Raises:
        MissingCurvatureError: if a block moves without any curvature.
        NonFiniteStatisticsError: if a gradient, a statistic or the result is not finite.
        NotPositiveDefiniteError: if a curvature plus its shift has no inverse.
    """
    held = [(block, group) for block, group in taking_part.blocks if table.placement[block].held]
    means = {block: mean for block, _ in taking_part.blocks if (mean := table.mean(block)) is not None}
    with table.together():
        observations = {block: collector.finish(block, optimizer._contexts.divisor(group)) for block, group in held}
        check_finite(evidence_tensors(taking_part.gradients, observations))
    for block, group in taking_part.blocks:  # by what all processes know
        optimizer._evidence.check_block(table, collector, block, group, taking_part.moves)
    with table.together():
        views, rates = {}, []
        for block, group in held:
            new, place = staged_curvature(table, block, group, observations[block]), table.placement[block]
            gradient, mean = taking_part.gradients[block], means[block]
            views[block] = BlockView(
                block.name, block.structure, new["curvature"], new["memory"], group, mean, gradient, place.counts
            )
            rates.append(float(group["lr"]) / anneal(group))
        context = StepContext(
            list(views.values()),
            optimizer.param_groups[0]["steps_done"],
            groups=[group for _, group in taking_part.blocks],
            over_processes=table.total,
        )
        moved = natural_gradient_step(context, optimizer.chain, rates)
        olds = [table.state(block)["curvature"] for block in views]
        check_finite(result_tensors(zip(views.values(), moved, olds, strict=True)))
    return StagedUpdate(views, dict(zip(views, moved, strict=True)), context.notes)


def _commit(optimizer: NaturalGradient, table: BlockTable, taking_part: TakingPart, staged: StagedUpdate) -> None:
    """Write a checked update and count the step."""
    olds = {block: table.state(block)["curvature"] for block in staged.views}
    for block, _ in taking_part.blocks:
        if block in staged.views:
            view = staged.views[block]
            table.state(block).update(curvature=view.state, memory=view.memory)
        table.write(block, staged.means.get(block))
    table.publish(olds)
    optimizer._reshard()
    optimizer._evidence.record.add(staged.notes)
    for group in optimizer.param_groups:
        group["steps_done"] += 1
