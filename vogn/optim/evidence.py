"""What a step needs to know about its evidence, and how evidence enters the curvature."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from vogn.capture.collector import Collector
from vogn.capture.partition import Block
from vogn.capture.statistics import Statistic
from vogn.errors import MissingCurvatureError
from vogn.optim.blocks import BlockTable, Group
from vogn.types import Observation

REMEDY = "run forward and backward inside `with opt.sampled_params():`"

TakingPart = Sequence[tuple[Block, Group, Tensor]]
"""Blocks with a gradient, their groups and gradients."""


class EvidenceCheck:
    """Refuses steps without curvature and warns, once, about steps with an old one.

    Args:
        statistics: what the optimizer measures.
    """

    def __init__(self, statistics: Sequence[Statistic]) -> None:
        self.statistics = tuple(statistics)
        self._warned: set[str] = set()

    def may_step(self, table: BlockTable, collector: Collector, taking_part: TakingPart) -> bool:
        """Whether this step may run; ``False`` for a harmless step without gradients.

        Raises:
            MissingCurvatureError: if there are gradients but the curvature has never been observed.
        """
        if not collector.empty or all("step" in statistic.WHEN for statistic in self.statistics):
            return bool(taking_part)
        moving = [block for block, _, gradient in taking_part if bool(gradient.any())]
        if not moving:
            return False
        if not any(table.state(block)["memory"]["observations"] for block in table.blocks):
            hint = ""
            if any(statistic.NEEDS_LIKELIHOOD or statistic.NAME == "price" for statistic in self.statistics):
                hint = " and compute the loss with one of vogn.likelihoods (or call opt.observe(outputs, likelihood))"
            raise MissingCurvatureError(
                f"block {moving[0].name!r} has a gradient but its curvature has never been observed: {REMEDY}{hint}"
            )
        if any(table.due(block, "observe_every") for block, _, _ in taking_part):
            self._warn("", f"this step observed no curvature and uses the old one: {REMEDY}")
        return True

    def check_block(
        self, table: BlockTable, collector: Collector, block: Block, group: Group, observation: Observation, g: Tensor
    ) -> None:
        """A block that moves has evidence, or at least a start; so has every layer of a joined block.

        Raises:
            MissingCurvatureError: if it has neither.
        """
        if observation or table.state(block)["memory"]["observations"]:
            watched = block.members if observation and block.joined else ()
            unseen = [m for m in watched if m.rule is not None and m not in collector.seen]
            moving = [m for m in unseen if any(p.grad is not None and bool(p.grad.any()) for p in m.parameters)]
            if moving and any(statistic.NEEDS_PAIRS for statistic in self.statistics):
                self._raise_unseen(moving[0].layout.names[0])
            if not observation and table.due(block, "observe_every") and bool(g.any()):
                self._warn(block.name, f"block {block.name!r} moves but was not observed; it keeps its old curvature")
            return
        if not bool(g.any()):
            return
        if not table.known(block):
            self._raise_unseen(block.name)
        if group["sampled"]:
            self._warn(block.name, f"block {block.name!r} keeps its initial curvature: no statistic has seen it")

    def _raise_unseen(self, name: str) -> None:
        raise MissingCurvatureError(
            f"block {name!r} has a gradient but the statistic {[s.NAME for s in self.statistics]} saw nothing of it: "
            "its layer is used without calling its forward, or the loss was computed without one of vogn.likelihoods; "
            "use one, or give the block a curvature with initial_curvature=1.0"
        )

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=5)


def anneal(group: Mapping[str, Any]) -> float:
    """``1 + t^p``, ``p = anneal_power``, ``t`` from 1: the divisor of both step sizes; 1 without a power."""
    power = group["anneal_power"]
    return 1.0 if power is None else 1.0 + (group["steps_done"] + 1.0) ** power


def update_curvature(table: BlockTable, block: Block, group: Group, observation: Observation) -> None:
    """``C <- decay C + weight C_hat`` in the block's state, and the factorisation where it is due."""
    state = table.state(block)
    memory = state["memory"]
    first = not memory["observations"]
    if observation:
        decay = float(group["curvature_decay"])
        weight = (1.0 - decay) / anneal(group)
        decay = 1.0 - weight if group["anneal_power"] is not None else decay
        if first and group["initial_curvature"] == "first_batch":
            decay, weight = 0.0, 1.0
        state["curvature"] = block.structure.update(
            state["curvature"], observation, decay=decay, weight=weight, shift=float(group["weight_decay"])
        )
        memory["observations"] += 1
        memory["curvature_weight"].mul_(decay).add_(weight)
    if first or group["steps_done"] % group["refresh_every"] == 0:
        state["curvature"] = block.structure.refresh(state["curvature"])
