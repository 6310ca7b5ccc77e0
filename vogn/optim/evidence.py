"""What a step needs to know about its evidence, and how evidence enters the curvature."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.linalg import LinAlgError

from vogn.capture.bundles import Bundle
from vogn.capture.collector import Collector
from vogn.capture.partition import Block
from vogn.capture.statistics import Statistic
from vogn.errors import FactorisationError, MissingCurvatureError, NotPositiveDefiniteError, in_block
from vogn.optim.blocks import BlockTable, Group
from vogn.types import Observation, State

if TYPE_CHECKING:
    from vogn.optim.linear_pass import LinearPass

REMEDY = "run forward and backward inside `with opt.sampled_params():`"


@dataclass(frozen=True)
class TakingPart:
    """What takes part in a step.

    Args:
        blocks: those with a gradient, and their groups; the same on all processes.
        gradients: as far as this process holds the blocks; not of those with a linear pass.
        moves: whether a gradient has an element that is not zero, on any process.
        linear: the passes that compute blocks without curvature from their parameters.
    """

    blocks: Sequence[tuple[Block, Group]]
    gradients: Mapping[Block, Tensor]
    moves: Callable[[Block], bool]
    linear: Mapping[Block, LinearPass] = field(default_factory=dict)


@dataclass
class StepRecord:
    """How the steps went since the optimizer was built or loaded: for diagnostics, not kept in checkpoints.

    Args:
        steps: finished steps.
        refused: steps that raised because of numbers that were not finite or a curvature without inverse.
        tolerated: finished steps that measured nothing although a measurement was due, and used the old curvature.
        notes: sums, and numbers of steps, of what the chain's steps noted.
    """

    steps: int = 0
    refused: int = 0
    tolerated: int = 0
    notes: dict[str, tuple[Tensor, int]] = field(default_factory=dict)

    def add(self, notes: Mapping[str, Tensor]) -> None:
        """Count a finished step."""
        self.steps += 1
        for name, value in notes.items():
            total, count = self.notes.get(name, (torch.zeros_like(value), 0))
            self.notes[name] = (total + value, count + 1)

    def shares(self) -> dict[str, float]:
        """Averages over the steps; nothing before the first step."""
        out = {}
        attempts = self.steps + self.refused
        if attempts:
            out["refused_share"] = self.refused / attempts
        if self.steps:
            out["tolerated_share"] = self.tolerated / self.steps
        return out | {name: float(total) / count for name, (total, count) in self.notes.items()}


UNSEEN = (
    "its layer is used without calling its forward, or inside torch.utils.checkpoint with use_reentrant=True (choose "
    "use_reentrant=False), or in a torch.compile'd model that had run before the first context (call "
    "torch._dynamo.reset()), or the loss was computed without one of vogn.likelihoods"
)


class EvidenceCheck:
    """Refuses steps without curvature, warns once about steps with an old one, and keeps the record of the steps.

    Args:
        statistics: what the optimizer measures.
    """

    def __init__(self, statistics: Sequence[Statistic]) -> None:
        self.statistics = tuple(statistics)
        self.record = StepRecord()
        self._warned: set[str] = set()

    def may_step(self, table: BlockTable, collector: Collector, taking_part: TakingPart) -> bool:
        """Whether this step may run; ``False`` for a harmless step without gradients.

        Raises:
            MissingCurvatureError: if there are gradients but the curvature has never been observed.
        """
        if not collector.empty or all("step" in statistic.WHEN for statistic in self.statistics):
            return bool(taking_part.blocks)
        if taking_part.blocks and all(table.without_curvature(group) for _, group in taking_part.blocks):
            return True
        moving = next((block for block, _ in taking_part.blocks if taking_part.moves(block)), None)
        if moving is None:
            return False
        if not any(table.state(block)["memory"]["observations"] for block in table.blocks):
            hint = ""
            if any(statistic.NEEDS_LIKELIHOOD or statistic.NAME == "price" for statistic in self.statistics):
                hint = " and compute the loss with one of vogn.likelihoods (or call opt.observe(outputs, likelihood))"
            raise MissingCurvatureError(
                f"block {moving.name!r} has a gradient but its curvature has never been observed: {REMEDY}{hint}"
            )
        if any(table.due(block, "observe_every") for block, _ in taking_part.blocks):
            self.record.tolerated += 1
            self._warn("", f"this step observed no curvature and uses the old one: {REMEDY}")
        return True

    def check_block(
        self, table: BlockTable, collector: Collector, block: Block, group: Group, moves: Callable[[Block], bool]
    ) -> None:
        """A block that moves has evidence, or at least a start; so has every layer of a joined block.

        Raises:
            MissingCurvatureError: if it has neither.
        """
        if table.without_curvature(group):
            return
        observed = collector.observed(block)
        if observed or table.state(block)["memory"]["observations"]:
            watched = block.members if observed and block.joined else ()
            unseen = [m for m in watched if m.rule is not None and m not in collector.seen]
            moving = [member for member in unseen if table.any_moves(member.parameters)]
            if moving and any(statistic.NEEDS_PAIRS for statistic in self.statistics):
                self._raise_unseen(moving[0].layout.names[0])
            if not observed and table.due(block, "observe_every") and moves(block):
                self._warn(block.name, f"block {block.name!r} moves but was not observed; it keeps its old curvature")
            return
        if not moves(block):
            return
        if not table.known(block):
            self._raise_unseen(block.name)
        if group["sampled"]:
            self._warn(block.name, f"block {block.name!r} keeps its initial curvature: {UNSEEN}")

    def _raise_unseen(self, name: str) -> None:
        raise MissingCurvatureError(
            f"block {name!r} has a gradient but the statistic {[s.NAME for s in self.statistics]} saw nothing of it: "
            f"{UNSEEN}. Mend that, or give the block a curvature with initial_curvature=1.0"
        )

    def _warn(self, key: str, message: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            warnings.warn(message, stacklevel=7)


def anneal(group: Mapping[str, Any]) -> float:
    """The divisor of both step sizes: ``step_divisor``, or ``1 + t^p``, ``p = anneal_power``, ``t`` from 1; else 1."""
    if group["step_divisor"] is not None:
        return float(group["step_divisor"])
    power = group["anneal_power"]
    return 1.0 if power is None else 1.0 + (group["steps_done"] + 1.0) ** power


TOLERATED_FAILURES = 3
"""Factorisations of a block that may fail in a row; each keeps the last good factors. The next failure raises."""


def staged_curvature(
    bundle: Bundle,
    state: Mapping[str, State],
    group: Group,
    observation: Observation,
    update: Callable[..., State] | None = None,
) -> dict[str, State]:
    """``C <- decay C + weight C_hat``, and the factorisation where it is due, as a new block state; nothing is written.

    ``state`` is that of the whole bundle. A factorisation that does not converge keeps the last good factors;
    ``memory["kept_factors"]`` counts how often, ``memory["kept_in_a_row"]`` how often since the last success.
    ``update`` takes the place of the structure's own.

    Returns:
        ``{"curvature": ..., "memory": ...}`` without any tensor that was changed in place.

    Raises:
        NotPositiveDefiniteError: naming the block, if there are no good factors yet or more than
            :data:`TOLERATED_FAILURES` in a row failed.
    """
    curvature, memory = state["curvature"], dict(state["memory"])
    first = not memory["observations"]
    failure: ArithmeticError | None = None
    with in_block(bundle.name):
        if observation:
            decay, weight = _memory(group)
            if first and group["initial_curvature"] == "first_batch":
                decay, weight = 0.0, 1.0
            shift = float(group["weight_decay"])
            try:
                absorb = update or bundle.structure.update
                curvature = absorb(curvature, observation, decay=decay, weight=weight, shift=shift)
            except FactorisationError as error:
                failure = error
            else:
                memory["observations"] = memory["observations"] + 1
                memory["curvature_weight"] = memory["curvature_weight"] * decay + weight
        due = first or group["steps_done"] % group["refresh_every"] == 0
        if due and failure is None:
            try:
                curvature = bundle.structure.refresh(curvature)
            except (NotPositiveDefiniteError, LinAlgError) as error:
                failure = NotPositiveDefiniteError(str(error))
    if failure is not None:
        has_start = group["initial_curvature"] != "first_batch" and float(group["initial_curvature"]) > 0.0
        _keep(memory, bundle.name, failure, has_factors=has_start or not first)
    elif (due or not bundle.structure.REFRESHED) and "kept_in_a_row" in memory:
        memory["kept_in_a_row"] = torch.zeros_like(memory["kept_in_a_row"])
    return {"curvature": curvature, "memory": memory}


def _memory(group: Mapping[str, Any]) -> tuple[float, float]:
    """What the old curvature and the new evidence are multiplied by."""
    decay = float(group["curvature_decay"])
    if group["step_divisor"] is not None:
        weight = 1.0 / anneal(group)
    else:
        weight = (1.0 - decay) / anneal(group)
        if group["anneal_power"] is None:
            return decay, weight
    return 1.0 - weight, weight


def _keep(memory: dict[str, Tensor], name: str, failure: ArithmeticError, *, has_factors: bool) -> None:
    """Count a failed factorisation and warn at the block's first.

    Raises:
        NotPositiveDefiniteError: if it cannot be tolerated.
    """
    zero = torch.zeros((), dtype=torch.int64)
    total, in_a_row = memory.get("kept_factors", zero) + 1, memory.get("kept_in_a_row", zero) + 1
    if not has_factors:
        raise NotPositiveDefiniteError(f"block {name!r}: {failure}; it has no earlier factors to keep") from failure
    if int(in_a_row) > TOLERATED_FAILURES:
        raise NotPositiveDefiniteError(
            f"block {name!r}: {failure}; {TOLERATED_FAILURES} factorisations in a row have failed before"
        ) from failure
    memory["kept_factors"], memory["kept_in_a_row"] = total, in_a_row
    if int(total) == 1:
        warnings.warn(
            f"block {name!r}: {failure}. Its last good factors are kept; diagnostics() counts how often", stacklevel=7
        )
