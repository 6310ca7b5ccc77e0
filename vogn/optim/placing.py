"""Which process holds what of each block, where the processes hold shards of the parameters."""

from __future__ import annotations

from collections.abc import Sequence

from vogn.capture.partition import Block
from vogn.distributed import Divided, Everywhere, Owned, Placement, Replicas, Shares, is_cut_evenly
from vogn.optim.steps import Scope, Step
from vogn.structures.costs import costs

SCOPES: tuple[Scope, ...] = ("element", "block", "model")


def placements(blocks: Sequence[Block], replicas: Replicas, chain: Sequence[Step]) -> dict[Block, Placement]:
    """The placement of every block; the same on all processes, without communication.

    Blocks of elementwise structures are divided as their parameters are. Every other block has an owner: the heaviest
    first, each to the process that has least to do so far. Blocks with a parameter that is not sharded, all blocks of
    one process, and all blocks if a step of the chain looks at the whole model, are held everywhere.

    Args:
        blocks: the same on all processes.
        replicas: the processes.
        chain: the steps from gradient to update.
    """
    scope = max((step.SCOPE for step in chain), key=SCOPES.index, default="element")
    out: dict[Block, Placement] = {}
    waiting: list[Block] = []
    for block in blocks:
        if replicas.size == 1 or scope == "model" or not is_cut_evenly(block.parameters, replicas.size):
            out[block] = Everywhere(block.layout, block.parameters, replicas.rank)
        elif block.structure.ELEMENTWISE and scope == "element":
            out[block] = Divided(Shares(block.layout, block.parameters, replicas))
        else:
            waiting.append(block)
    loads = [0.0] * replicas.size
    for block in sorted(waiting, key=work, reverse=True):
        owner = loads.index(min(loads))
        loads[owner] += work(block)
        out[block] = Owned(Shares(block.layout, block.parameters, replicas), owner, block.curvature_dtype)
    return out


def work(block: Block) -> float:
    """What a step costs the owner of a block: multiply-adds, or the size of the state if they are not known."""
    known, shape = costs(block.structure, block.layout.block_shape), block.layout.block_shape
    return float(block.structure.bytes_per_block(shape)) if known is None else known.refresh + known.solve
