"""Sampled contexts: a weight sample enters the model, gradients are computed at it, and the mean comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vogn.capture.bundles import Bundle
from vogn.capture.context import SampleContext
from vogn.capture.partition import Block
from vogn.capture.places import Places
from vogn.capture.reweighting import ExampleWeights
from vogn.distributed import is_sharded, own_shard, placed_like
from vogn.errors import MissingCurvatureError, NonFiniteStatisticsError, NotPositiveDefiniteError
from vogn.kernels import native, rooms
from vogn.linalg.layout import columns
from vogn.linalg.noise import key
from vogn.optim.blocks import BlockTable, copy_each
from vogn.optim.checks import check_group
from vogn.optim.functional import displacement, weight_noise

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient


class SampledContexts:
    """The weight sample that is in the model, and the number of those since the last step.

    Attributes:
        draws: contexts that have been completed: the coordinate of the next sample's noise.
        samples: those of them that had a backward: the weight samples that the gradients are sums over.
        examples: examples of the last context whose places in the data set were asked for.
        in_closure: whether ``step()`` runs a closure, whose ``zero_grad`` leaves the observations alone.
    """

    def __init__(self) -> None:
        self.draws = self.samples = self.examples = 0
        self.in_closure = False
        self._means: list[tuple[Tensor, Tensor]] | None = None
        self._bundles: Sequence[Bundle] = ()
        self._marks: list[tuple[int, int] | None] = []

    @property
    def open(self) -> bool:
        """Whether a context is open."""
        return self._means is not None

    def require_mean(self, what: str) -> None:
        """The model holds the mean.

        Raises:
            RuntimeError: inside a sampled context.
        """
        if self.open:
            raise RuntimeError(f"{what} inside a sampled context would see noisy weights; call it after the context")

    def enter(
        self,
        table: BlockTable,
        context: SampleContext,
        parameters: Iterable[Tensor],
        draws: Sequence[Draw] = (),
        bundles: Sequence[Bundle] = (),
    ) -> None:
        """Keep the mean and add a weight sample to it.

        Args:
            table: the optimizer's blocks.
            context: what was drawn.
            parameters: all parameters, whose gradients tell whether the context has a backward.
            draws: blocks of it whose sample is still to be drawn.
            bundles: whose displacement is in their memory for it.
        """
        done = {own.block for own in draws} | {block for bundle in bundles for block in bundle.blocks}
        offsets: list[tuple[Tensor, Tensor]] = []
        for block in table.blocks:
            if block not in done and block.name in context.displaced:
                values = table.placement[block].spread(context.displacement.get(block.name))
                _hold_sharded(block, values)
                named = zip(block.layout.names, block.parameters, strict=True)
                offsets += [(parameter, values[name]) for name, parameter in named if parameter.requires_grad]
        constants = _constants([block for block in table.blocks if block.name in context.displaced])
        means = _clones([parameter.detach() for parameter, _ in offsets])
        for bundle in bundles:
            weights, kept = [parameter.detach() for parameter in bundle.parameters], bundle.scratch("kept")
            kept.fill(weights)
            means += zip(weights, kept.parts, strict=True)
            offsets += zip(weights, bundle.scratch("displacement").parts, strict=True)
        self._means, self._bundles = means, bundles  # from here on there is something to put back
        _displace(offsets)
        for own in draws:
            self._means += own.write()
        copy_each(constants)
        self._marks = _gradient_marks(parameters)

    def leave(self) -> None:
        """Put the mean back, bit for bit."""
        assert self._means is not None
        means, self._means = self._means, None
        copy_each(means)
        for bundle in self._bundles:
            bundle.release("displacement", "kept")
        self._bundles = ()

    def count(self, parameters: Iterable[Tensor], examples: int = 0) -> None:
        """The context that was left counts: as a weight sample if a gradient has changed since it was entered."""
        self.draws += 1
        self.examples = examples
        self.samples += int(_gradient_marks(parameters) != self._marks)

    def reset(self) -> None:
        """Count from zero."""
        self.draws = self.samples = self.examples = 0

    def divisor(self, group: Mapping[str, Any]) -> int:
        """What a group's gradients are to be divided by: its ``mc_samples``, or 1 without contexts.

        Raises:
            RuntimeError: if the contexts are not as many as ``mc_samples`` asks for.
        """
        wanted = int(group["mc_samples"])
        if self.samples and self.samples % wanted:
            raise RuntimeError(
                f"{self.samples} sampled contexts since the last step are not a multiple of mc_samples={wanted}; "
                "run the context mc_samples times per step (micro-batches inside one context accumulate)"
            )
        return wanted if self.samples else 1


def _constants(blocks: Iterable[Block]) -> list[tuple[Tensor, Tensor]]:
    """Parts of parameters that are no weights, and copies of them; not of sharded ones."""
    found = []
    for block in blocks:
        if not block.layout.constants:
            continue
        named = dict(zip(block.layout.names, block.parameters, strict=True))
        parts = [named[name].detach()[place] for name, place in block.layout.constants if not is_sharded(named[name])]
        found += [(part, part.clone()) for part in parts]
    return found


def _hold_sharded(block: Block, offsets: dict[str, Tensor]) -> None:
    """No offset for those parts that :func:`_constants` cannot point at."""
    named = dict(zip(block.layout.names, block.parameters, strict=True))
    for name, place in block.layout.constants:
        if is_sharded(parameter := named[name]):
            moves = own_shard(parameter).new_ones(parameter.shape[0], 1)
            moves[place] = 0.0
            offsets[name] = offsets[name] * placed_like(parameter, moves)


def _clones(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Tensors and their copies."""
    pairs = [(tensor, rooms.empty_like(tensor)) for tensor in tensors]
    copy_each([(copy, tensor) for tensor, copy in pairs])
    return pairs


def _displace(offsets: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Add the offset of every parameter, in the wider one of both dtypes."""
    plain: tuple[list[Tensor], list[Tensor]] = [], []
    for parameter, offset in offsets:
        if parameter.dtype == offset.dtype and not is_sharded(parameter):
            plain[0].append(parameter)
            plain[1].append(offset)
        else:
            parameter.copy_(parameter + offset)
    if plain[0]:
        torch._foreach_add_(*plain)


def _gradient_marks(parameters: Iterable[Tensor]) -> list[tuple[int, int] | None]:
    """Identity and version of every gradient: a context in which none of them changes had no backward."""
    marks: list[tuple[int, int] | None] = []
    for parameter in parameters:
        grad = parameter.grad
        if grad is None:
            marks.append(None)
        else:
            marks.append((id(grad), (grad if type(grad) is Tensor else own_shard(grad))._version))
    return marks


@dataclass(frozen=True)
class Draw:
    """A block whose noise, displacement and move to the sample are one pass over its numbers.

    Args:
        block: it has a plain diagonal, and its parameters are the columns of its block vector.
        weights: its parameters, as :func:`vogn.linalg.layout.columns` has them.
        curvature: the diagonal.
        displacement, kept: memory for the displacement and the mean, as block vectors.
        seed: of the block's stream of noise.
        shift, scale: see :func:`vogn.kernels.native.draw`.
    """

    block: Block
    weights: tuple[Tensor, Tensor | None]
    curvature: Tensor
    displacement: Tensor
    kept: Tensor
    seed: int
    shift: float
    scale: float

    def write(self) -> list[tuple[Tensor, Tensor]]:
        """Move the weights; the parameters, detached, and what they were."""
        native.draw(
            self.weights,
            self.curvature,
            self.displacement,
            self.kept,
            seed=self.seed,
            shift=self.shift,
            scale=self.scale,
        )
        values = self.block.layout.unpack(self.kept)
        named = zip(self.block.layout.names, self.block.parameters, strict=True)
        return [(parameter.detach(), values[name]) for name, parameter in named]


def draw(
    optimizer: NaturalGradient, table: BlockTable, indices: Tensor | None = None
) -> tuple[SampleContext, list[Draw], list[Bundle]]:
    """A weight sample of all blocks that are sampled now, its coordinates, and what steps want to know about the
    examples; no weight is written. The second are blocks whose displacement is still to be computed, the third bundles
    whose displacement is in their memory for it.

    Raises:
        MissingCurvatureError: if a block is to be sampled that has no curvature any more.
    """
    sample = optimizer._contexts.draws
    drawn: dict[str, Tensor] = {}
    elsewhere: set[str] = set()
    wanted: list[Block] = []
    draws: list[Draw] = []
    bundles: list[Bundle] = []
    with table.together():
        for group in {id(group): group for _, group in table}.values():
            if group["variational"] and group["sampled"]:
                check_group(optimizer, group)
                if reason := table.without_curvature(group):
                    raise MissingCurvatureError(f"weights cannot be sampled: {reason}")
        for block, group in table:
            if not (group["variational"] and group["sampled"]) or not table.known(block):
                continue  # without evidence never a draw from the bare prior
            if table.placement[block].held:
                wanted.append(block)
            else:
                elsewhere.add(block.name)
        for bundle in table.bundles.of(wanted):
            own = _draw(optimizer, table, bundle, sample)
            if own is None:
                drawn.update(_drawn(optimizer, table, bundle, sample))
                bundles += [bundle] if _in_scratch(bundle) else []
            else:
                draws.append(own)
                drawn[own.block.name] = own.displacement
    context = SampleContext(
        seed=optimizer.seed,
        step=optimizer.param_groups[0]["steps_done"],
        sample=sample,
        displacement=drawn,
        ess={block.name: group["ess"] for block, group in table},
        shift={block.name: group["weight_decay"] for block, group in table},
        rank=optimizer.replicas.noise_rank,
        places=_places(optimizer, indices),
        weights=_example_weights(optimizer, table),
        elsewhere=frozenset(elsewhere),
        shared=frozenset(block.name for bundle in bundles for block in bundle.blocks),
    )
    return context, draws, bundles


def _draw(optimizer: NaturalGradient, table: BlockTable, bundle: Bundle, sample: int) -> Draw | None:
    """The one pass that draws a block's sample; ``None`` where there is none."""
    block = bundle.blocks[0]
    group, curvature = table.group(block), None
    if len(bundle.blocks) == 1 and not table.placement[block].divided:
        curvature = block.structure.plain_diagonal(table.state(block)["curvature"], group["weight_decay"])
    weights = columns(block.layout, block.parameters)
    if curvature is None or weights is None:
        return None
    if not (native.takes(*block.parameters) and all(parameter.requires_grad for parameter in block.parameters)):
        return None
    index = sample // 2 if optimizer.antithetic else sample
    mirrored = optimizer.antithetic and sample % 2
    scale = float(group["ess"]) ** -0.5
    return Draw(
        block,
        weights,
        curvature,
        rooms.empty_like(curvature),
        rooms.empty_like(curvature),
        seed=key(optimizer.seed, "weights", group["steps_done"], index, block.name, optimizer.replicas.noise_rank),
        shift=group["weight_decay"],
        scale=-scale if mirrored else scale,
    )


def _in_scratch(bundle: Bundle) -> bool:
    """Whether the bundle's displacement is in its memory for it: where all of it goes into the model."""
    return bundle.has_scratch and all(parameter.requires_grad for parameter in bundle.parameters)


def _drawn(optimizer: NaturalGradient, table: BlockTable, bundle: Bundle, sample: int) -> dict[str, Tensor]:
    """Block name to displacement."""
    group, first = table.group(bundle.blocks[0]), bundle.blocks[0]
    scratch = bundle.scratch("displacement") if _in_scratch(bundle) else None
    noise = weight_noise(
        {block.name: block.layout.block_shape for block in bundle.blocks},
        seed=optimizer.seed,
        step=group["steps_done"],
        sample=sample,
        antithetic=optimizer.antithetic,
        dtype=first.curvature_dtype,
        device=first.parameters[0].device,
        rank=optimizer.replicas.noise_rank,
        out=None if scratch is None else scratch.take(),
    )
    cut = [table.placement[block].cut(own) for block, own in zip(bundle.blocks, noise, strict=True)]
    states = [table.state(block)["curvature"] for block in bundle.blocks]
    ess, shift = group["ess"], group["weight_decay"]
    try:
        joined = displacement(
            bundle.structure, bundle.join_states(states), bundle.join(cut), ess=ess, shift=shift, name=bundle.name
        )
    except (NonFiniteStatisticsError, NotPositiveDefiniteError):
        for block, own, state in zip(bundle.blocks, cut, states, strict=True):  # one of them is to be named
            displacement(block.structure, state, own, ess=ess, shift=shift, name=block.name)
        raise
    if scratch is not None:
        if joined.data_ptr() != scratch.vector.data_ptr():
            scratch.vector.copy_(joined)
        return {block.name: part for block, part in zip(bundle.blocks, scratch.blocks, strict=True)}
    return {block.name: part for block, part in zip(bundle.blocks, bundle.split(joined), strict=True)}


def _places(optimizer: NaturalGradient, indices: Tensor | None) -> Places | None:
    """Where the examples of a new context stand in the data set, if a step wants to know."""
    found = (step.places(optimizer.param_groups[0], indices, optimizer.replicas) for step in optimizer.chain)
    return next((places for places in found if places is not None), None)


def _example_weights(optimizer: NaturalGradient, table: BlockTable) -> dict[str, ExampleWeights]:
    """Block name to the weights of the examples in its gradients, where they shall not count alike."""
    weights = {}
    for block, group in table:
        for step in optimizer.chain:
            found = step.example_weights(table.state(block)["memory"], group)
            if found is not None:
                weights[block.name] = found
    return weights


def run_closure(optimizer: NaturalGradient, parameters: Sequence[Tensor], closure: Callable[[], Any]) -> Any:
    """Call a closure in one context per weight sample, and leave the sum of its gradients in ``.grad``.

    Where a context of the caller's own is open, or has measured this step already, the closure belongs to it and runs
    once, as it is.

    Args:
        optimizer: whose contexts are opened.
        parameters: all its parameters.
        closure: clears the gradients, computes the loss, calls ``backward()`` and returns the loss.

    Returns:
        The closure's last value.
    """
    if optimizer._contexts.open or optimizer._contexts.samples:
        with torch.enable_grad():
            return closure()
    optimizer.zero_grad()
    sums: list[Tensor | None] = [None] * len(parameters)
    loss = None
    optimizer._contexts.in_closure = True
    try:
        for _ in range(optimizer.param_groups[0]["mc_samples"]):
            torch.optim.Optimizer.zero_grad(optimizer)
            with optimizer.sampled_params(), torch.enable_grad():
                loss = closure()
            for k, parameter in enumerate(parameters):
                if parameter.grad is not None:
                    total = sums[k]
                    sums[k] = parameter.grad if total is None else total.add_(parameter.grad)
                    parameter.grad = None
    finally:
        optimizer._contexts.in_closure = False
    for parameter, total in zip(parameters, sums, strict=True):
        parameter.grad = total
    return loss
