"""From the evidence of every rank to the evidence of all, the same on every rank.

Ranks may have seen different blocks: who has what is exchanged first, in an order that depends on the blocks alone.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from vogn.capture.ledger import Ledger, Record, Source
from vogn.capture.partition import Block, Member
from vogn.distributed import ABSENT, Part, Placement, Replicas, is_sharded, lengths, reduce_parts

POOLED: tuple[Source, ...] = ("user", "own", "exit")
"""Sources whose evidence belongs to one rank; the finished gradient is already everybody's."""

GRADIENT_TOLERANCE = 1e-3
"""Relative difference between gradient norms of two ranks above which they do not hold one averaged gradient."""


@dataclass(frozen=True)
class Agreement:
    """What all ranks must have in common when they step together.

    Args:
        numbers: name to value.
        gradients: whether each block has a gradient.
        norm: norm of all gradients.
    """

    numbers: Mapping[str, int] = field(default_factory=dict)
    gradients: Sequence[bool] = ()
    norm: float = 0.0


def agreement_of(blocks: Sequence[Block], numbers: Mapping[str, int]) -> Agreement:
    """What this rank holds, from the gradients of its blocks and the given numbers."""
    gradients = [[parameter.grad for parameter in block.parameters if parameter.grad is not None] for block in blocks]
    # the averaging of sharded gradients cannot be forgotten, so their norms need no comparison
    norms = [g.norm().double() for of_block in gradients for g in of_block if not is_sharded(g)]
    norm = float(torch.stack([norm.to(norms[0].device) for norm in norms]).norm()) if norms else 0.0
    return Agreement(numbers, [bool(of_block) for of_block in gradients], norm)


def pool(
    ledger: Ledger,
    blocks: Sequence[Block],
    seen: set[Member],
    *,
    agreement: Agreement,
    scale_of: Callable[[Source, Block], float],
    replicas: Replicas,
    placement_of: Callable[[Block], Placement] | None = None,
) -> tuple[Ledger, set[Member]]:
    """Evidence, counts and seen members of all ranks together.

    Args:
        ledger: this rank's evidence; used up, unless the ranks do not agree.
        blocks: the same on all ranks.
        seen: members that this rank has ever seen.
        agreement: what must be equal.
        scale_of: the factor on output gradients that undoes this rank's loss scale and reduction.
        replicas: the ranks.
        placement_of: block to what of it each rank holds; ``None``: all hold everything. Evidence of a block that a
            rank holds nothing of becomes a record without leaves.

    Raises:
        RuntimeError: on all ranks, if they do not agree.
    """
    parts = []
    rows = []
    divided: dict[str, Record] = {}
    for block in blocks:
        for source in POOLED:
            record = ledger.records.get(source, {}).get(block.name, Record())
            scale, degree = scale_of(source, block) if record.leaves else 1.0, block.structure.DEGREE
            leaves, factors = record.leaves, {key: scale ** degree[key] for key in record.leaves}
            place = None if placement_of is None else placement_of(block)
            if source == "exit" and place is not None and place.divided:
                if block.name in ledger.records.get(source, {}):
                    divided[block.name] = _of_all(record, factors, replicas.size)
                leaves = {}
            keys, concatenate = tuple(sorted(degree)), block.structure.REDUCE == "concat"
            device = block.parameters[0].device
            parts.append(Part(leaves, keys, concatenate, block.curvature_dtype, device, factors, place))
            rows.append(record.rows)
    members = [member for block in blocks for member in block.members]
    facts = [
        *agreement.numbers.values(),
        *agreement.gradients,
        _bits(agreement.norm),
        ledger.count,
        *(block.name in ledger.probed for block in blocks),
        *(member in seen for member in members),
        *rows,
    ]
    mine = [int(fact) for fact in facts]
    table = replicas.all_gather_numbers([*mine, *lengths(parts)], blocks[0].parameters[0].device)
    theirs = iter(list(zip(*(row[: len(mine)] for row in table), strict=True)))
    _check_agreement(agreement, blocks, theirs)
    pooled = Ledger()
    pooled.count = sum(next(theirs))
    pooled.probed = {block.name for block in blocks if any(next(theirs))}
    everyone = {member for member in members if any(next(theirs))}
    lengths_of = [row[len(mine) :] for row in table]
    found = _found(parts, lengths_of)
    for position, leaves in enumerate(reduce_parts(parts, lengths_of, replicas)):
        block, source = blocks[position // len(POOLED)], POOLED[position % len(POOLED)]
        total = sum(next(theirs))
        if found[position]:
            pooled.records.setdefault(source, {})[block.name] = Record(leaves, total)
    if divided:
        pooled.records.setdefault("exit", {}).update(divided)
    if "step" in ledger.records:
        pooled.records["step"] = dict(ledger.records["step"])
    return pooled, everyone


def _of_all(record: Record, factors: Mapping[str, float], processes: int) -> Record:
    """Products with a gradient that is the average over all ranks: the part here is as if every rank had found it."""
    leaves = {key: leaf * (factors[key] * processes) for key, leaf in record.leaves.items()}
    return Record(leaves, record.rows * processes)


def _found(parts: Sequence[Part], lengths_of: Sequence[Sequence[int]]) -> list[bool]:
    """Whether any rank has a leaf of each part."""
    longest = iter([max(column) for column in zip(*lengths_of, strict=True)])
    return [any([next(longest) > ABSENT for _ in part.keys]) for part in parts]


def _check_agreement(agreement: Agreement, blocks: Sequence[Block], theirs: Iterator[tuple[int, ...]]) -> None:
    for name in agreement.numbers:
        values = next(theirs)
        if len(set(values)) > 1:
            raise RuntimeError(
                f"the ranks do not agree about {name}: {list(values)}. All ranks must build the optimizer with the "
                "same options and step equally often; processes that train apart need process_group=None"
            )
    for block in blocks:
        values = next(theirs)
        if len(set(values)) > 1:
            without = [rank for rank, value in enumerate(values) if not value]
            raise RuntimeError(
                f"block {block.name!r} has a gradient on some ranks but not on ranks {without}: {UNSYNCED}"
            )
    norms = [_number(bits) for bits in next(theirs)]
    if max(norms) - min(norms) > GRADIENT_TOLERANCE * max(norms):
        raise RuntimeError(f"the ranks hold different gradients, of norms {norms}: {UNSYNCED}")


UNSYNCED = (
    "gradients must be averaged over the ranks before opt.step(). Train DistributedDataParallel(model), with the last "
    "backward before the step outside no_sync(); processes that train apart need process_group=None"
)


def _bits(number: float) -> int:
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def _number(bits: int) -> float:
    return float(struct.unpack("<d", struct.pack("<q", bits))[0])
