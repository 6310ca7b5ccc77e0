"""Sums and concatenations of many small tensors over all ranks, in few collectives.

The order of collectives depends only on what all ranks know: they first exchange who has which leaf and how long it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vogn.distributed.placement import Placement
from vogn.distributed.replicas import Replicas
from vogn.types import Observation, Shape

BUCKET_ELEMENTS = 1 << 25
"""Tensors are summed over the ranks in buffers of about this many elements."""

ABSENT = -1
"""Length of a leaf that a rank does not have."""


@dataclass(frozen=True)
class Part:
    """Leaves that are merged over the ranks.

    Args:
        leaves: what this rank has; used up, for a leaf is let go as soon as it has been merged.
        keys: all leaves that a rank may have, in an order that all ranks share.
        concatenate: whether leaves are concatenated in dimension 0, in the order of ranks, instead of summed.
        dtype, device: of the result.
        factors: what this rank's leaves are to be multiplied by, 1 where nothing is said.
        placement: which part of the sum each process wants; ``None``: all want all of it.
    """

    leaves: Observation
    keys: tuple[str, ...]
    concatenate: bool
    dtype: torch.dtype
    device: torch.device
    factors: Mapping[str, float] = field(default_factory=dict)
    placement: Placement | None = None


Slot = tuple[int, str]
"""Number of a part and name of a leaf."""


def lengths(parts: Sequence[Part]) -> list[int]:
    """What a rank tells the others about its leaves: one number per part and key, :data:`ABSENT` for a missing leaf."""
    return [
        ABSENT if key not in part.leaves else part.leaves[key].shape[0] if part.concatenate else 0
        for part in parts
        for key in part.keys
    ]


def reduce_parts(parts: Sequence[Part], lengths_of: Sequence[Sequence[int]], replicas: Replicas) -> list[Observation]:
    """Merge the leaves of all ranks; a leaf that no rank has stays absent.

    Args:
        parts: this rank's, in an order that all ranks share.
        lengths_of: :func:`lengths` of every rank, by rank.
        replicas: the ranks.

    Returns:
        One dictionary per part: the same tensors on every rank, or what its placement leaves to this one.
    """
    slots: list[Slot] = [(k, key) for k, part in enumerate(parts) for key in part.keys]
    by_slot = dict(zip(slots, zip(*lengths_of, strict=True), strict=True))
    present = [slot for slot in slots if max(by_slot[slot]) > ABSENT]
    shapes = _shapes(parts, [slot for slot in present if min(by_slot[slot]) == ABSENT], replicas)
    out: list[Observation] = [{} for _ in parts]
    for goal, bucket in _buckets(parts, [slot for slot in present if not parts[slot[0]].concatenate], shapes):
        leaves = [_leaf(parts, slot, shapes) for slot in bucket]
        placements = [parts[k].placement for k, _ in bucket]
        totals = _sums(leaves, placements, goal, replicas)
        for (k, key), total in zip(bucket, totals, strict=True) if totals is not None else ():
            out[k][key] = total
    for goal, bucket in _buckets(parts, [slot for slot in present if parts[slot[0]].concatenate], shapes):
        mine = [_leaf(parts, slot, shapes) for slot in bucket]
        rows = [[max(length, 0) for length in by_slot[slot]] for slot in bucket]
        widths = [leaf.shape[1:].numel() for leaf in mine]
        sizes = [[rows[j][rank] * width for j, width in enumerate(widths)] for rank in range(replicas.size)]
        flat = torch.cat([leaf.reshape(-1) for leaf in mine])
        everyones = _everyones(flat, [sum(s) for s in sizes], goal, replicas)
        if everyones is None:
            continue
        split = [theirs.split(size) for theirs, size in zip(everyones, sizes, strict=True)]
        for j, ((k, key), leaf) in enumerate(zip(bucket, mine, strict=True)):
            out[k][key] = torch.cat([pieces[j].view(-1, *leaf.shape[1:]) for pieces in split])
    return out


EVERYBODY, SHARES = -1, -2
"""Goals of a reduction, besides the rank of an owner: all have all of it, each has its share."""


def _goal(part: Part, shape: Shape) -> int:
    """Who is to have a leaf; single numbers that no process owns go to everybody."""
    if part.placement is None or not part.placement.divided:
        return EVERYBODY
    if part.placement.owner is not None:
        return part.placement.owner
    return SHARES if shape else EVERYBODY


def _sums(
    leaves: Sequence[Tensor], placements: Sequence[Placement | None], goal: int, replicas: Replicas
) -> list[Tensor] | None:
    """Sums of leaves over the ranks, in one collective; ``None`` on a rank that is to have nothing."""
    places = [place for place in placements if place is not None]
    if goal == SHARES and any(place.copied for place in places):
        # a sum that is scattered is formed in another order on every rank
        totals = _sums(leaves, placements, EVERYBODY, replicas)
        assert totals is not None
        return [place.cut(total) for total, place in zip(totals, places, strict=True)]
    if goal == SHARES:
        pieces = [
            [place.share(leaf, rank) for leaf, place in zip(leaves, places, strict=True)]
            for rank in range(replicas.size)
        ]
        flat = replicas.reduce_scatter([torch.cat([piece.reshape(-1) for piece in theirs]) for theirs in pieces])
        shapes = [piece.shape for piece in pieces[replicas.rank]]
    else:
        flat = torch.cat([leaf.reshape(-1) for leaf in leaves])
        if goal == EVERYBODY:
            replicas.all_reduce(flat)
        else:
            replicas.reduce(flat, goal)
        if goal not in (EVERYBODY, replicas.rank):
            return None
        shapes = [leaf.shape for leaf in leaves]
    return [p.view(shape) for p, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]


def _everyones(flat: Tensor, sizes: Sequence[int], goal: int, replicas: Replicas) -> list[Tensor] | None:
    """Everyone's vector, by rank; ``None`` on a rank that is to have nothing."""
    if goal == EVERYBODY:
        return replicas.all_gather_flat(flat, sizes)
    return replicas.gather_flat(flat, sizes, goal)


def _shapes(parts: Sequence[Part], incomplete: Sequence[Slot], replicas: Replicas) -> dict[Slot, Shape]:
    """Shapes of the leaves that some ranks lack; communicates only if there are any."""
    if not incomplete:
        return {}
    mine = {
        slot: tuple(parts[slot[0]].leaves[slot[1]].shape) for slot in incomplete if slot[1] in parts[slot[0]].leaves
    }
    known: dict[Slot, Shape] = {}
    for theirs in replicas.all_gather_objects(mine):
        known = theirs | known
    return known


def _leaf(parts: Sequence[Part], slot: Slot, shapes: dict[Slot, Shape]) -> Tensor:
    """This rank's leaf, which its part lets go, or the neutral one."""
    k, key = slot
    part = parts[k]
    if key in part.leaves:
        leaf, factor = part.leaves.pop(key), part.factors.get(key, 1.0)
        return (leaf if factor == 1.0 else leaf * factor).to(part.dtype)
    return torch.zeros(_shape(parts, slot, shapes), dtype=part.dtype, device=part.device)


def _shape(parts: Sequence[Part], slot: Slot, shapes: dict[Slot, Shape]) -> torch.Size:
    """The shape of this rank's leaf, or of the neutral one."""
    k, key = slot
    if key in parts[k].leaves:
        return parts[k].leaves[key].shape
    shape = shapes[slot]
    return torch.Size((0, *shape[1:]) if parts[k].concatenate else shape)


def _buckets(
    parts: Sequence[Part], slots: Sequence[Slot], shapes: dict[Slot, Shape]
) -> Iterator[tuple[int, list[Slot]]]:
    """Slots of one dtype, device and goal, cut so that a bucket of leaves to be summed has a bounded size."""
    by_kind: dict[tuple[torch.dtype, torch.device, int], list[Slot]] = {}
    for slot in slots:
        part = parts[slot[0]]
        kind = (part.dtype, part.device, _goal(part, _shape(parts, slot, shapes)))
        by_kind.setdefault(kind, []).append(slot)
    for (_, _, goal), same_kind in by_kind.items():
        bucket: list[Slot] = []
        elements = 0
        for slot in same_kind:
            part = parts[slot[0]]
            # the sizes of leaves to be concatenated differ between ranks and must not decide about buckets
            size = 0 if part.concatenate else _shape(parts, slot, shapes).numel()
            if bucket and elements + size > BUCKET_ELEMENTS:
                yield goal, bucket
                bucket, elements = [], 0
            bucket.append(slot)
            elements += size
        yield goal, bucket
