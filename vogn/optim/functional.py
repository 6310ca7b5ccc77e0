"""The functional core of the optimizer: tensors in, tensors out; the shell around it does no arithmetic."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vogn.capture.bundles import Bundle
from vogn.capture.normalisation import Leaf
from vogn.capture.partition import Block
from vogn.errors import NonFiniteStatisticsError, in_block
from vogn.kernels import rooms
from vogn.linalg.each import alike, subtract_each, total_each
from vogn.linalg.noise import fill_normals
from vogn.linalg.noise import key as key_of
from vogn.optim.steps import Step, StepContext
from vogn.structures.base import Structure
from vogn.types import Observation, Shape, State


def weight_noise(
    shapes: Mapping[str, Shape],
    *,
    seed: int,
    step: int,
    sample: int,
    antithetic: bool,
    dtype: torch.dtype,
    device: torch.device,
    rank: int = 0,
    out: Tensor | None = None,
) -> list[Tensor]:
    """Standard normal block vectors, by block name; several of them lie one after the other in memory.

    With ``antithetic`` the samples ``2 k`` and ``2 k + 1`` are each other's mirror images. ``out`` is that memory.
    """
    index = sample // 2 if antithetic else sample
    sizes = [math.prod(shape) for shape in shapes.values()]
    room = rooms.empty((sum(sizes),), dtype=dtype, device=device) if out is None else out.view(-1)
    fill_normals(room, sizes, [key_of(seed, "weights", step, index, name, rank) for name in shapes])
    if antithetic and sample % 2:
        room.neg_()
    return [part.view(shape) for part, shape in zip(room.split(sizes), shapes.values(), strict=True)]


def displacement(structure: Structure, state: State, noise: Tensor, *, ess: float, shift: float, name: str) -> Tensor:
    """``(ess (C + shift I))^(-1/2) noise``: a draw from the posterior minus its mean, as a block vector."""
    with in_block(name):
        return structure.displace(state, noise, shift, ess)


def check_finite(tensors: Iterable[tuple[str, str, Tensor]], causes: Iterable[tuple[str, str, Tensor]] = ()) -> None:
    """Refuse NaN and infinity before anything is written; waits for the device once.

    Args:
        tensors: ``(block name, what it is, tensor)``.
        causes: what the tensors were computed from; looked at, and named first, if they are not finite.

    Raises:
        NonFiniteStatisticsError: naming the block and what is not finite.
    """
    suspects = list(tensors)
    if not suspects:
        return
    totals = total_each([tensor for _, _, tensor in suspects])
    if not alike(totals):
        totals = [(total * 0.0).to(totals[0].device, torch.float32) for total in totals]  # NaN unless finite
    if bool(torch.stack(totals).isfinite().all()):
        return
    for name, what, tensor in (*causes, *suspects):
        if not bool(tensor.isfinite().all()):  # finite numbers may have an infinite sum
            raise NonFiniteStatisticsError(
                f"block {name!r}: the {what} holds NaN or infinity; nothing was updated. Check the loss and the "
                "inputs, lower lr, or raise damping"
            )


@dataclass(frozen=True)
class Evidence:
    """What a bundle learns from in a step; computed when somebody asks.

    Args:
        bundle: blocks that are computed together.
        gradients: block vectors.
        leaves: the evidence of the blocks, and what normalises it.
    """

    bundle: Bundle
    gradients: Mapping[Block, Tensor]
    leaves: Mapping[Block, Mapping[str, Leaf]]

    @cached_property
    def gradient(self) -> Tensor:
        """Of all blocks together."""
        return self.bundle.join([self.gradients[block] for block in self.bundle.blocks])

    @cached_property
    def observation(self) -> Observation:
        """Of all blocks together, normalised."""
        return self.bundle.join_states(
            [{key: leaf.product() for key, leaf in self.leaves[block].items()} for block in self.bundle.blocks]
        )

    @property
    def raw(self) -> Observation:
        """What a pass is given: not normalised where there is one block."""
        if len(self.bundle.blocks) > 1:
            return self.observation
        return {key: leaf.tensor for key, leaf in self.leaves[self.bundle.blocks[0]].items()}


def evidence_tensors(
    evidence: Mapping[Bundle, Evidence], gradients: Iterable[Callable[[], Tensor]]
) -> Iterator[tuple[str, str, Tensor]]:
    """What :func:`check_finite` looks at before a step: gradient and observation of every bundle."""
    for (bundle, found), gradient in zip(evidence.items(), gradients, strict=True):
        yield bundle.name, "gradient", gradient()
        for key, leaf in found.observation.items():
            yield bundle.name, f"curvature statistic {key!r}", leaf


def result_tensors(
    blocks: Iterable[tuple[str, Tensor | None, Mapping[str, State], State]],
) -> Iterator[tuple[str, str, Tensor]]:
    """What :func:`check_finite` looks at after a step: ``(name, new mean, new state, old curvature)`` of every block.

    Of a curvature only the tensors that are not the old ones.
    """
    for name, mean, new, old in blocks:
        if mean is not None:
            yield name, "updated weight", mean
        for key, leaf in new["curvature"].items():
            if leaf is not old.get(key) and leaf.is_floating_point():
                yield name, f"updated curvature {key!r}", leaf


def check_rate(name: str, rate: float, group: Mapping[str, Any], dtype: torch.dtype) -> None:
    """A learning rate is a number of the dtype.

    Raises:
        NonFiniteStatisticsError: naming the block, if it is beyond its range.
    """
    if rate > torch.finfo(dtype).max:
        raise NonFiniteStatisticsError(
            f"block {name!r}: the learning rate {group['lr']:g} is beyond the range of {dtype}; lower lr"
        )


def natural_gradient_step(context: StepContext, steps: Sequence[Step], rates: Sequence[float]) -> list[Tensor]:
    """New means of all blocks: ``m - rate * chain(gradient)``.

    Args:
        context: views of the blocks.
        steps: the chain.
        rates: learning rate of each block.

    Raises:
        NonFiniteStatisticsError: if a rate is beyond the range of the block's numbers.
    """
    for block, rate in zip(context.blocks, rates, strict=True):
        check_rate(block.name, rate, block.group, block.mean.dtype)
    updates = [block.gradient for block in context.blocks]
    for step in steps:
        updates = step(updates, context)
    return subtract_each([block.mean for block in context.blocks], updates, rates)
