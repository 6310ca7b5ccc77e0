"""From the blocks of an optimizer to a Gaussian posterior, and the likelihood that goes with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vogn.capture.collector import Collector
from vogn.distributed import whole
from vogn.errors import MissingCurvatureError
from vogn.optim.blocks import BlockTable, Group
from vogn.optim.evidence import REMEDY
from vogn.posterior import GaussianPosterior, PosteriorBlock

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient


def posterior_of(optimizer: NaturalGradient, table: BlockTable, collector: Collector) -> GaussianPosterior:
    """See :meth:`vogn.NaturalGradient.posterior`.

    Args:
        optimizer: whose method and groups are meant.
        table: its blocks.
        collector: knows the likelihood that was heard last.
    """
    any_known = any(table.known(block) for block in table.blocks)
    blocks: list[PosteriorBlock] = []
    means: dict[str, Tensor] = {}
    for block, group in table:
        if group["sampled"] and (reason := table.without_curvature(group)):
            raise MissingCurvatureError(f"there is no posterior: {reason}")
        means |= dict(zip(block.layout.names, (whole(p.detach()) for p in block.parameters), strict=True))
        if group["sampled"] and not table.known(block) and not (any_known and group["weight_decay"] > 0):
            raise MissingCurvatureError(
                f"block {block.name!r} has no curvature yet: {REMEDY}, then opt.step(); a layer that the model "
                "never uses needs weight_decay > 0 (its posterior is the prior) or requires_grad_(False)"
            )
        if group["sampled"] and group["ess"] is None:
            raise ValueError("a posterior needs the effective sample size: set ess=len(train_set)")
        blocks.append(
            PosteriorBlock(
                name=block.name,
                layout=block.layout,
                structure=block.structure,
                state={
                    key: tensor
                    for key, tensor in table.gathered(block)["curvature"].items()
                    if key not in block.structure.EARLIER  # it is in C
                },
                shift=float(group["weight_decay"]),
                ess=float(group["ess"] or math.inf),
                sampled=bool(group["sampled"]),
            )
        )
    likelihood = _likelihood(collector.likelihood, optimizer.param_groups[0])
    return GaussianPosterior(blocks, means, likelihood=likelihood, method=type(optimizer).__name__)


def _likelihood(heard: Any, group: Group) -> dict[str, Any] | None:
    """The likelihood that was heard last, else the one that a checkpoint has brought."""
    if heard is not None:
        described: dict[str, Any] = heard.to_dict()
        return described
    return json.loads(group["likelihood"]) if group["likelihood"] else None


def store_likelihood(groups: Iterable[Group], heard: Any) -> None:
    """Write the likelihood into the param groups, which checkpoints keep; ``None`` leaves them as they are."""
    if heard is not None:
        for group in groups:
            group["likelihood"] = json.dumps(heard.to_dict())
