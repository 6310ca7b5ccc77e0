"""Floor 2: several processes that train copies of one model, and how their evidence becomes one.

Nothing here knows blocks or statistics: tensors and numbers in, tensors and numbers out.
"""

from __future__ import annotations

from vogn.distributed.local_gradients import LocalGradients
from vogn.distributed.placement import Divided, Everywhere, Owned, Placement, Shares
from vogn.distributed.reduction import ABSENT, Part, lengths, reduce_parts
from vogn.distributed.replicas import ProcessGroupChoice, Replicas, SampleSync, has_static_graph, inner_module
from vogn.distributed.sharding import is_cut_evenly, is_sharded, own_shard, placed_like, reshard, whole
from vogn.distributed.unanimity import Unanimity

__all__ = [
    "ABSENT",
    "Divided",
    "Everywhere",
    "LocalGradients",
    "Owned",
    "Part",
    "Placement",
    "ProcessGroupChoice",
    "Replicas",
    "SampleSync",
    "Shares",
    "Unanimity",
    "has_static_graph",
    "inner_module",
    "is_cut_evenly",
    "is_sharded",
    "lengths",
    "own_shard",
    "placed_like",
    "reduce_parts",
    "reshard",
    "whole",
]
