"""The update of curvature and mean: staged from the evidence, checked, and only then written."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vogn.capture.bundles import Bundle, numbers_in
from vogn.capture.collector import Collector
from vogn.capture.normalisation import Leaf, require_count
from vogn.capture.objective import Objective
from vogn.capture.partition import Block
from vogn.capture.statistics import Statistic
from vogn.errors import NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.linalg.noise import source
from vogn.optim.blocks import BlockTable, Group, copy_each
from vogn.optim.evidence import TakingPart, staged_curvature
from vogn.optim.functional import Evidence, check_finite, evidence_tensors, natural_gradient_step, result_tensors
from vogn.optim.linear_pass import LinearPass, fitting_linear_pass, linear_form, linear_steps
from vogn.optim.one_pass import chain_form
from vogn.optim.plan import plan_of
from vogn.optim.steps import BlockView, Passed, StepContext
from vogn.types import State

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient


@dataclass(frozen=True)
class StagedUpdate:
    """New states and means, checked but not written yet.

    Args:
        states: new curvature and memory of the blocks that move, as far as this process holds them.
        means: their new means, as block vectors; ``None`` where a diagonal pass writes them; not of the blocks with a
            linear pass.
        parameters: the parameters of those, and their new values, where it does not write them.
        moved: the means as the chain's steps have seen them: of several blocks together, and not of those with a pass.
        writes: of passes, which write over what they were computed from, first of all.
        context: what the chain's steps shared: of the blocks that they have computed.
    """

    states: Mapping[Block, dict[str, State]]
    means: Mapping[Block, Tensor | None]
    parameters: Sequence[tuple[Tensor, Tensor]]
    moved: Sequence[Tensor]
    writes: Sequence[Callable[[], None]]
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
    else:
        _commit(optimizer, table, taking_part, staged)
        collector.clear()
        optimizer._contexts.reset()
    finally:
        table.bundles.release("mean", "gradient")


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
        devices = {block.parameters[0].device for block, _ in table}
        numbers = {
            "seed": optimizer.seed,
            "the number of steps": optimizer.param_groups[0]["steps_done"],
            "the source of noise (code in C, Triton's kernel, or PyTorch)": source(devices),
        }
        collector.pool({block: optimizer._contexts.divisor(group) for block, group in table}, numbers)
    blocks: list[tuple[Block, Group]] = []
    linear: dict[Block, LinearPass] = {}
    form = linear_form(optimizer.chain)
    for block, group in table:
        memory = table.state(block)["memory"]
        if any(parameter.grad is not None for parameter in block.parameters):
            blocks.append((block, group))
            if form is not None and table.without_curvature(group):
                divisor = _gradient_divisor(optimizer, collector, block, group)
                linear_pass = fitting_linear_pass(form, block, table.placement[block], memory, group, divisor)
                if linear_pass is not None:
                    linear[block] = linear_pass
    gradients = Packed(
        (block for block, _ in blocks if block not in linear),
        lambda block: mean_gradient(optimizer, table, collector, block, table.group(block)),
        now=lambda block: not _as_it_is(optimizer, table, block),
    )
    taking_part = TakingPart(blocks, gradients, table.moving(gradients), linear)
    if not optimizer._evidence.may_step(table, collector, taking_part):
        return None
    for block, _ in blocks:
        due = block not in linear and table.due(block, "observe_every")
        for statistic in optimizer.statistics if due else ():
            if "step" in statistic.WHEN:
                _finished(statistic, collector, block, gradients.get(block))
    return taking_part


class Packed(Mapping[Block, Tensor]):
    """Block vectors that are packed once they are asked for.

    Args:
        blocks: all blocks.
        pack: makes the vector of a block, ``None`` if this process holds nothing of it.
        now: whether it is to be made at once: others than these, this process holds.
    """

    def __init__(
        self, blocks: Iterable[Block], pack: Callable[[Block], Tensor | None], now: Callable[[Block], bool]
    ) -> None:
        self._pack = pack
        self._found: dict[Block, Tensor | None] = {}
        for block in blocks:
            later = not now(block)
            vector = None if later else pack(block)
            if later or vector is not None:
                self._found[block] = vector

    def __getitem__(self, block: Block) -> Tensor:
        found = self._found[block]
        if found is None:
            found = self._found[block] = self._pack(block)
            assert found is not None
        return found

    def __iter__(self) -> Iterator[Block]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _as_it_is(optimizer: NaturalGradient, table: BlockTable, block: Block) -> bool:
    """Whether parameters and gradients of a block are its mean and mean gradient, whole and unpacked."""
    grads = [parameter.grad for parameter in block.parameters]
    plain = all(type(grad) is Tensor and grad.layout is torch.strided for grad in grads)
    averaged = optimizer.loss_reduction == "mean" and optimizer._contexts.divisor(table.group(block)) == 1
    return plain and averaged and not table.divided


def _finished(statistic: Statistic, collector: Collector, block: Block, gradient: Tensor | None) -> None:
    """A block's gradient is complete; where another process holds it, that it is observed is all that is known."""
    if gradient is not None:
        statistic.on_step(collector, block, gradient)
    else:
        collector.add(block, {}, "step", rows=1)


def mean_gradient(
    optimizer: NaturalGradient, table: BlockTable, collector: Collector, block: Block, group: Group
) -> Tensor | None:
    """The gradient of the mean loss per example, averaged over weight samples, as a block vector; ``None`` where
    another process holds the block."""
    gradient = table.gradient(block)
    divisor = _gradient_divisor(optimizer, collector, block, group)
    return gradient / divisor if gradient is not None and divisor != 1.0 else gradient


def _gradient_divisor(optimizer: NaturalGradient, collector: Collector, block: Block, group: Group) -> float:
    """What ``.grad`` is to be divided by."""
    divisor = float(optimizer._contexts.divisor(group))
    if optimizer.loss_reduction == "sum":
        count = collector.loss_terms(block)
        require_count(count)
        divisor = count / optimizer.replicas.size  # averaged over the replicas
    return divisor


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
    if len(taking_part.linear) == len(taking_part.blocks):  # nothing is left for the chain
        states, parameters, writes = _linear_steps(table, taking_part)
        groups = [group for _, group in taking_part.blocks]
        context = StepContext([], optimizer.param_groups[0]["steps_done"], groups=groups)
        return StagedUpdate(states, {}, parameters, [], writes, context)
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
    by_chain = [(block, group) for block, group in taking_part.blocks if block not in taking_part.linear]
    held = [(block, group) for block, group in by_chain if table.placement[block].held]
    means = Packed((block for block, _ in by_chain), table.mean, now=lambda block: table.divided)
    as_they_are = [block for block, _ in held if _as_it_is(optimizer, table, block)]
    with table.together():
        leaves = {block: collector.finish(block, optimizer._contexts.divisor(group)) for block, group in held}
        measured = any(leaves.values())
        bundles = _bundles(table, collector, leaves, together)
        evidence = {bundle: Evidence(bundle, taking_part.gradients, leaves) for bundle in bundles}
        form = chain_form(optimizer.chain)
        packed = set(as_they_are)
        plans = [plan_of(table, form, found, means, packed) for found in evidence.values()]
        passes = [plan.one_pass for plan in plans]
        checked = measured and not all(one_pass is not None and one_pass.looks for one_pass in passes)
        if checked:  # else what is not finite shows in the result
            check_finite(evidence_tensors(evidence, [plan.gradient for plan in plans]))
    for block, group in taking_part.blocks:  # by what all processes know
        optimizer._evidence.check_block(table, collector, block, group, taking_part.moves)
    with table.together():
        views, news = [], []
        for (bundle, found), plan in zip(evidence.items(), plans, strict=True):
            first = bundle.blocks[0]
            group = table.group(first)
            observation = found.observation if plan.one_pass is None else found.raw
            new = staged_curvature(bundle, plan.old, group, observation, plan.one_pass)
            news.append(new)
            if plan.one_pass is not None:
                new["memory"] |= plan.one_pass.memory
                continue
            views.append(
                BlockView(
                    bundle.name,
                    bundle.structure,
                    new["curvature"],
                    new["memory"],
                    group,
                    plan.mean(),
                    found.gradient,
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
            passed=[
                Passed(one_pass.clipped, new["curvature"]["c"].numel(), table.placement[bundle.blocks[0]].counts)
                for bundle, new, one_pass in zip(bundles, news, passes, strict=True)
                if one_pass is not None and one_pass.clipped is not None
            ],
        )
        rates = [plan.rate for plan in plans if plan.one_pass is None]
        by_steps = rates or context.passed or not passes  # with a clip on every process: it sums over them
        moved = natural_gradient_step(context, optimizer.chain, rates) if by_steps else []
        computed = iter(zip(views, moved, strict=True))
        new_means: list[Tensor | None] = []
        for new, one_pass in zip(news, passes, strict=True):
            if one_pass is None:
                view, own_mean = next(computed)
                new.update(curvature=view.state, memory=view.memory)  # steps may have changed them
                new_means.append(own_mean)
            else:
                new_means.append(one_pass.moved)
        names = [bundle.name for bundle in bundles]
        blocks = zip(names, new_means, news, (plan.old["curvature"] for plan in plans), strict=True)
        unseen = [not (one_pass is not None and one_pass.found_finite) for one_pass in passes]
        suspects = [
            (bundle.name, "updated momentum", one_pass.suspect)
            for bundle, one_pass in zip(bundles, passes, strict=True)
            if one_pass is not None and one_pass.suspect is not None
        ]
        results = (*result_tensors(compress(blocks, unseen)), *suspects)
        check_finite(results, () if checked else evidence_tensors(evidence, [plan.gradient for plan in plans]))
        states, parameters, linear_writes = _linear_steps(table, taking_part)
    split: dict[Block, Tensor | None] = {}
    for bundle, plan, new, mean in zip(bundles, plans, news, new_means, strict=True):
        if mean is not None and plan.in_scratch:
            parameters += zip(bundle.parameters, bundle.scratch("mean").holding(mean).parts, strict=True)
            mean = None
        whole = [None] * len(bundle.blocks) if mean is None else bundle.split(mean)
        olds = [table.state(block) for block in bundle.blocks]
        curvatures, memories = (
            bundle.split_state(new[kind], [old[kind] for old in olds]) for kind in ("curvature", "memory")
        )
        for block, curvature, memory, own in zip(bundle.blocks, curvatures, memories, whole, strict=True):
            states[block], split[block] = {"curvature": curvature, "memory": memory}, own
    writes = [found.write for found in passes if found is not None]
    return StagedUpdate(states, split, parameters, moved, [*writes, *linear_writes], context)


def _linear_steps(
    table: BlockTable, taking_part: TakingPart
) -> tuple[dict[Block, dict[str, State]], list[tuple[Tensor, Tensor]], list[Callable[[], None]]]:
    """New states of the blocks with a linear pass; their parameters with their new values; what writes those of both
    that are not there yet. Nothing is written.

    Raises:
        NonFiniteStatisticsError: if a gradient or the result is not finite.
    """
    states: dict[Block, dict[str, State]] = {}
    parameters: list[tuple[Tensor, Tensor]] = []
    writes: list[Callable[[], None]] = []
    for passes, memories, step in linear_steps(list(taking_part.linear.values())):
        blocks = [each.block for each in passes]
        if not step.finite:
            named = zip(blocks, step.blocks, strict=True)
            check_finite(
                [(block.name, "updated weight", mean) for block, (means, _) in named for mean in means],
                [(each.block.name, "gradient", gradient) for each in passes for gradient in each.gradients],
            )
        for block, memory, (means, _) in zip(blocks, memories, step.blocks, strict=True):
            states[block] = {"curvature": table.state(block)["curvature"], "memory": memory}
            if step.write is None:
                parameters += zip(block.parameters, means, strict=True)
        writes += [] if step.write is None else [step.write]
    return states, parameters, writes


def _bundles(
    table: BlockTable, collector: Collector, leaves: Mapping[Block, Mapping[str, Leaf]], together: bool
) -> list[Bundle]:
    """The observed blocks, together where all their numbers are the same."""

    def alike(block: Block) -> Hashable:
        state = table.state(block)
        numbers = numbers_in(state["curvature"]), numbers_in(state["memory"])
        return (*numbers, tuple(leaves[block]), collector.loss_terms(block))

    return table.bundles.of(leaves, alike, together=together)


def _commit(optimizer: NaturalGradient, table: BlockTable, taking_part: TakingPart, staged: StagedUpdate) -> None:
    """Write a checked update and count the step."""
    for write in staged.writes:
        write()
    olds = {block: table.state(block)["curvature"] for block in staged.states}
    for block, new in staged.states.items():
        table.state(block).update(new)
    there = {block for block, mean in staged.means.items() if mean is None} | set(taking_part.linear)
    table.write({block: staged.means.get(block) for block, _ in taking_part.blocks if block not in there})
    copy_each(staged.parameters)
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
