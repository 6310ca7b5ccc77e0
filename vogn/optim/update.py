"""The update of curvature and mean: staged from the evidence, checked, and only then written."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import compress
from typing import TYPE_CHECKING

from torch import Tensor

from vogn.capture.bundles import Bundle, numbers_in
from vogn.capture.collector import Collector
from vogn.capture.normalisation import require_count
from vogn.capture.objective import Objective
from vogn.capture.partition import Block
from vogn.capture.statistics import Statistic
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.kernels import native
from vogn.optim.blocks import BlockTable, Group
from vogn.optim.evidence import TakingPart, anneal, staged_curvature
from vogn.optim.functional import check_finite, evidence_tensors, natural_gradient_step, result_tensors
from vogn.optim.one_pass import ChainForm, OnePass, chain_form, fitting_pass
from vogn.optim.steps import BlockView, Step, StepContext
from vogn.types import Observation, State

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient


@dataclass(frozen=True)
class StagedUpdate:
    """New states and means, checked but not written yet.

    Args:
        states: new curvature and memory of the blocks that move, as far as this process holds them.
        means: their new means, as block vectors.
        moved: the means as the chain's steps have seen them: of several blocks together.
        passes: what is written over what it was computed from, first of all.
        context: what the chain's steps shared.
    """

    states: Mapping[Block, dict[str, State]]
    means: Mapping[Block, Tensor]
    moved: Sequence[Tensor]
    passes: Sequence[OnePass]
    context: StepContext


def update(optimizer: NaturalGradient, objective: Objective | None = None) -> None:
    """One update from the gradients and observations at hand; see :meth:`vogn.NaturalGradient.step`."""
    table, collector = optimizer._build()
    taking_part = _take_part(optimizer, table, collector)
    if taking_part is None:
        return
    _check_requirements(optimizer, objective)
    terms = max(collector.loss_terms(block) for block, _ in taking_part.blocks)
    try:
        with _undone_on_error(optimizer.param_groups):
            for step in optimizer.chain:
                step.before(optimizer.param_groups, terms)
            staged = _staged(optimizer, table, collector, taking_part, objective)
    except (NonFiniteStatisticsError, NotPositiveDefiniteError):
        collector.clear()  # the next step must not meet this evidence again
        optimizer._contexts.reset()
        optimizer._evidence.record.refused += 1
        raise
    _commit(optimizer, table, taking_part, staged)
    collector.clear()
    optimizer._contexts.reset()


@contextmanager
def _undone_on_error(groups: Sequence[Group]) -> Iterator[None]:
    """Group entries that are changed inside come back if the body raises."""
    entries = [dict(group) for group in groups]
    try:
        yield
    except BaseException:
        for group, old in zip(groups, entries, strict=True):
            group.update(old)
        raise


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


def _take_part(optimizer: NaturalGradient, table: BlockTable, collector: Collector) -> TakingPart | None:
    """The blocks with a gradient, the evidence of all processes behind them; ``None`` if there is nothing to do.

    Raises:
        MissingCurvatureError: if there are gradients but the curvature has never been observed.
        RuntimeError: if the contexts do not fit ``mc_samples``, or the processes do not agree.
    """
    if optimizer.replicas.size > 1:
        numbers = {
            "seed": optimizer.seed,
            "the number of steps": optimizer.param_groups[0]["steps_done"],
            "the source of noise (a C compiler was found, or not)": int(native.available()),
        }
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


def _staged(
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
    if table.divided:  # an error is everybody's: nobody may try again
        return _stage(optimizer, table, collector, taking_part, objective, together=False)
    try:
        return _stage(optimizer, table, collector, taking_part, objective, together=True)
    except (NonFiniteStatisticsError, NotPositiveDefiniteError):  # block by block, so that the right one is named
        return _stage(optimizer, table, collector, taking_part, objective, together=False)


def _stage(
    optimizer: NaturalGradient,
    table: BlockTable,
    collector: Collector,
    taking_part: TakingPart,
    objective: Objective | None,
    *,
    together: bool,
) -> StagedUpdate:
    """See :func:`_staged`; ``together``: blocks in bundles, else each on its own."""
    held = [(block, group) for block, group in taking_part.blocks if table.placement[block].held]
    means = {block: mean for block, _ in taking_part.blocks if (mean := table.mean(block)) is not None}
    with table.together():
        observations = {block: collector.finish(block, optimizer._contexts.divisor(group)) for block, group in held}
        measured = any(observations.values())
        bundles = _bundles(table, collector, observations, together)
        evidence = {bundle: _evidence(bundle, taking_part.gradients, observations) for bundle in bundles}
        form = chain_form(optimizer.chain)
        plans = [_plan(table, form, bundle, found, means) for bundle, found in evidence.items()]
        passes = [plan.one_pass for plan in plans]
        checked = measured and not all(one_pass is not None and one_pass.looks for one_pass in passes)
        if checked:  # else what is not finite shows in the result
            check_finite(evidence_tensors(evidence))
    for block, group in taking_part.blocks:  # by what all processes know
        optimizer._evidence.check_block(table, collector, block, group, taking_part.moves)
    with table.together():
        views = []
        for (bundle, (gradient, observation)), plan in zip(evidence.items(), plans, strict=True):
            first = bundle.blocks[0]
            group = table.group(first)
            new = staged_curvature(bundle, plan.old, group, observation, plan.one_pass)
            if plan.one_pass is not None:
                new["memory"] |= plan.one_pass.memory
            views.append(
                BlockView(
                    bundle.name,
                    bundle.structure,
                    new["curvature"],
                    new["memory"],
                    group,
                    plan.mean,
                    gradient,
                    terms=float(collector.loss_terms(first)) if observation else 0.0,
                    counts=table.placement[first].counts,
                    layout=first.layout if len(bundle.blocks) == 1 else None,
                    parameters=first.parameters if len(bundle.blocks) == 1 else (),
                )
            )
        context = StepContext(
            views,
            optimizer.param_groups[0]["steps_done"],
            objective=objective,
            average=optimizer.replicas.average,
            groups=[group for _, group in taking_part.blocks],
            over_processes=table.total,
        )
        moved = _moved(context, optimizer.chain, [plan.rate for plan in plans], passes)
        suspects = [] if checked else list(evidence_tensors(evidence))
        results = zip(views, moved, (plan.old["curvature"] for plan in plans), strict=True)
        unseen = [not (one_pass is not None and one_pass.found_finite) for one_pass in passes]
        check_finite(result_tensors(compress(results, unseen)), suspects)
    new_states, new_means = {}, {}
    for bundle, view, mean in zip(bundles, views, moved, strict=True):
        parts = zip(bundle.split_state(view.state), bundle.split_state(view.memory), bundle.split(mean), strict=True)
        for block, (curvature, memory, own) in zip(bundle.blocks, parts, strict=True):
            new_states[block], new_means[block] = {"curvature": curvature, "memory": memory}, own
    return StagedUpdate(new_states, new_means, moved, [found for found in passes if found is not None], context)


@dataclass(frozen=True)
class _Plan:
    """What the update of a bundle starts from.

    Args:
        old: its ``"curvature"`` and ``"memory"``.
        mean: its block vector.
        rate: its learning rate.
        one_pass: the pass that does it all, where there is one.
    """

    old: dict[str, State]
    mean: Tensor
    rate: float
    one_pass: OnePass | None


def _plan(
    table: BlockTable,
    form: ChainForm | None,
    bundle: Bundle,
    evidence: tuple[Tensor, Observation],
    means: Mapping[Block, Tensor],
) -> _Plan:
    states, group = [table.state(block) for block in bundle.blocks], table.group(bundle.blocks[0])
    old = {kind: bundle.join_states([state[kind] for state in states]) for kind in ("curvature", "memory")}
    mean = bundle.join([means[block] for block in bundle.blocks])
    rate = float(group["lr"]) / anneal(group)
    gradient, observation = evidence
    return _Plan(
        old,
        mean,
        rate,
        fitting_pass(
            form,
            bundle.structure,
            old,
            group,
            observation,
            (mean, gradient),
            rate,
            in_place=not table.divided,
        ),
    )


def _moved(
    context: StepContext, chain: Sequence[Step], rates: Sequence[float], passes: Sequence[OnePass | None]
) -> list[Tensor]:
    """New means: those of the passes, and of the chain where there was none."""
    if all(one_pass is None for one_pass in passes):
        return natural_gradient_step(context, chain, rates)
    rest = [k for k, one_pass in enumerate(passes) if one_pass is None]
    others = replace(context, blocks=[context.blocks[k] for k in rest])
    by_chain = iter(natural_gradient_step(others, chain, [rates[k] for k in rest]) if rest else ())
    return [next(by_chain) if one_pass is None else one_pass.moved for one_pass in passes]


def _bundles(
    table: BlockTable, collector: Collector, observations: Mapping[Block, Observation], together: bool
) -> list[Bundle]:
    """The observed blocks, together where all their numbers are the same."""

    def alike(block: Block) -> Hashable:
        state = table.state(block)
        numbers = numbers_in(state["curvature"]), numbers_in(state["memory"])
        return (*numbers, tuple(observations[block]), collector.loss_terms(block))

    return table.bundles.of(observations, alike, together=together)


def _evidence(
    bundle: Bundle, gradients: Mapping[Block, Tensor], observations: Mapping[Block, Observation]
) -> tuple[Tensor, Observation]:
    """Gradient and observation of a bundle."""
    gradient = bundle.join([gradients[block] for block in bundle.blocks])
    return gradient, bundle.join_states([observations[block] for block in bundle.blocks])


def _commit(optimizer: NaturalGradient, table: BlockTable, taking_part: TakingPart, staged: StagedUpdate) -> None:
    """Write a checked update and count the step."""
    for one_pass in staged.passes:
        one_pass.write()
    olds = {block: table.state(block)["curvature"] for block in staged.states}
    for block, new in staged.states.items():
        table.state(block).update(new)
    table.write({block: staged.means.get(block) for block, _ in taking_part.blocks})
    table.publish(olds)
    optimizer._reshard()
    for step in optimizer.chain:
        step.after(list(staged.moved), staged.context)
    optimizer._evidence.record.add(staged.context.notes)
    for group in optimizer.param_groups:
        group["examples_done"] += optimizer._contexts.examples
        if not table.without_curvature(group):
            group["examples_measured"] = group["examples_done"]
        group["steps_done"] += 1
