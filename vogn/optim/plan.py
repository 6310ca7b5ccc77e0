"""What the update of a bundle starts from: packed mean and gradient, and the pass that does it all, if there is one."""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from vogn.capture.normalisation import Leaf
from vogn.capture.partition import Block
from vogn.kernels import native
from vogn.linalg.layout import columns
from vogn.optim.blocks import BlockTable
from vogn.optim.evidence import anneal
from vogn.optim.functional import Evidence
from vogn.optim.one_pass import ChainForm, OnePass, Vectors, fitting_pass
from vogn.types import Observation, State


@dataclass(frozen=True)
class Plan:
    """What the update of a bundle starts from.

    Args:
        old: its ``"curvature"`` and ``"memory"``.
        mean, gradient: pack its block vectors.
        rate: its learning rate.
        one_pass: the pass that does it all, where there is one.
        in_scratch: whether it packs the mean into the bundle's memory for it.
    """

    old: dict[str, State]
    mean: Callable[[], Tensor]
    gradient: Callable[[], Tensor]
    rate: float
    one_pass: OnePass | None
    in_scratch: bool


def plan_of(
    table: BlockTable,
    form: ChainForm | None,
    evidence: Evidence,
    means: Mapping[Block, Tensor],
    as_they_are: Container[Block],
) -> Plan:
    """The plan for a bundle; nothing is computed yet.

    Args:
        table: all blocks.
        form: of the chain, ``None`` for one that no pass knows.
        evidence: of the bundle.
        means: block vectors, packed when they are asked for.
        as_they_are: blocks whose parameters and gradients are mean and mean gradient, whole and unpacked.
    """
    bundle, first = evidence.bundle, evidence.bundle.blocks[0]
    states, group = [table.state(block) for block in bundle.blocks], table.group(first)
    old = {kind: bundle.join_states([state[kind] for state in states]) for kind in ("curvature", "memory")}

    at_once = bundle.has_scratch and all(block in as_they_are for block in bundle.blocks)

    def own_mean() -> Tensor:
        return bundle.join([means[block] for block in bundle.blocks])

    @cache
    def mean() -> Tensor:
        if at_once:
            return bundle.scratch("mean").fill([parameter.detach() for parameter in bundle.parameters])
        return own_mean()

    @cache
    def gradient() -> Tensor:
        found = bundle.gradient() if at_once else None
        return evidence.gradient if found is None else found

    rate = float(group["lr"]) / anneal(group)
    own: tuple[native.Columns | None, native.Columns | None] = None, None
    if len(bundle.blocks) == 1 and first in as_they_are:
        parameters = first.parameters
        own = _columns(first, [p.detach() for p in parameters]), _columns(first, [p.grad for p in parameters])
    vectors = Vectors(mean, gradient, *own)
    leaves = evidence.leaves[first] if len(bundle.blocks) == 1 else _ready(evidence.observation)
    one_pass = fitting_pass(form, bundle.structure, old, group, leaves, vectors, rate, in_place=not table.divided)
    if one_pass is None:  # steps of a chain may keep what they see
        return Plan(old, own_mean, lambda: evidence.gradient, rate, None, in_scratch=False)
    return Plan(old, mean, gradient, rate, one_pass, in_scratch=at_once)


def _columns(block: Block, tensors: Sequence[Tensor | None]) -> native.Columns | None:
    """A weight and a bias that are side by side in a block vector."""
    there = [tensor for tensor in tensors if tensor is not None]
    found = columns(block.layout, there) if len(there) == len(tensors) else None
    return None if found is None or found[1] is None else (found[0], found[1])


def _ready(observation: Observation) -> dict[str, Leaf]:
    """Leaves that are normalised already."""
    return {key: Leaf(tensor, 1.0) for key, tensor in observation.items()}
