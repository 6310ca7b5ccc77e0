"""What capture cannot do where several processes train one model, and says so with the remedy."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from vogn.capture.partition import Block
from vogn.distributed import Replicas, has_static_graph, is_sharded
from vogn.errors import UnsupportedObservationError

if TYPE_CHECKING:
    from vogn.capture.statistics.base import Statistic


def sharded_block(blocks: Iterable[Block]) -> Block | None:
    """The first block with a sharded parameter."""
    return next((block for block in blocks if any(is_sharded(parameter) for parameter in block.parameters)), None)


def check_noise(blocks: Iterable[Block], displaced: Container[str], replicas: Replicas) -> None:
    """Sharded parameters are gathered from all processes: all must have drawn the same.

    Args:
        blocks: the optimizer's blocks.
        displaced: names of those that a weight sample was drawn for.
        replicas: the processes.

    Raises:
        UnsupportedObservationError: naming a sharded block with independent noise.
    """
    if replicas.sample_sync == "shared":
        return
    sharded = sharded_block(block for block in blocks if block.name in displaced)
    if sharded is not None:
        raise UnsupportedObservationError(
            f"block {sharded.name!r} is sharded (fully_shard): a process cannot draw weights of its own, for it "
            "computes with the weights of all. Use sample_sync='shared', or DistributedDataParallel"
        )


def check_not_sharded(blocks: Iterable[Block], what: str, statistics: Sequence[Statistic]) -> None:
    """The graph holds gathered copies of sharded parameters, so nothing can be derived with respect to them.

    Raises:
        UnsupportedObservationError: naming a sharded block.
    """
    sharded = sharded_block(blocks)
    if sharded is not None:
        raise UnsupportedObservationError(
            f"block {sharded.name!r} is sharded (fully_shard): {what} with respect to a sharded parameter cannot be "
            f"taken, as {[statistic.NAME for statistic in statistics]} would need. Freeze the parameter, keep it whole "
            "with fully_shard(..., ignored_params=...), train DistributedDataParallel, or use VAdam or a variational "
            "IVON"
        )


def check_own_pass(outputs: Tensor, statistics: Sequence[Statistic], replicas: Replicas) -> None:
    """A pass of our own must not end the averaging of gradients over processes.

    Raises:
        UnsupportedObservationError: if the outputs come from a wrapper with ``static_graph=True``.
    """
    if replicas.size > 1 and has_static_graph(outputs):
        raise UnsupportedObservationError(
            f"the statistics {[statistic.NAME for statistic in statistics]} run a backward of their own, which a "
            "DistributedDataParallel with static_graph=True takes for the user's: use static_graph=False, or the "
            "empirical Fisher"
        )
