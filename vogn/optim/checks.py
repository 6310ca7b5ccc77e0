"""What the shell refuses, with the remedy, before any training time is spent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from vogn.capture.partition import PARTITIONS
from vogn.capture.statistics import Statistic
from vogn.errors import UnsupportedObservationError, in_block
from vogn.linalg.rows import AnyRows, GradientRow, JoinedRows, Rows
from vogn.optim.blocks import BlockTable
from vogn.optim.steps import PseudoSolve, Solve
from vogn.structures.base import Structure

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient


def check_combination(optimizer: NaturalGradient, *, needs_model: bool) -> None:
    """Structure, statistics and chain fit each other.

    Raises:
        TypeError: if layers are needed but only parameters were given.
        UnsupportedObservationError: if the structure cannot be fed, or the chain asks for an unsupported exponent.
        ValueError: if ``loss_reduction`` or the partition is unknown.
    """
    name, structure = type(optimizer).__name__, optimizer.structure
    if optimizer.partition not in PARTITIONS:
        raise ValueError(f"partition={optimizer.partition!r} is unknown; choose one of {', '.join(PARTITIONS)}")
    if needs_model and optimizer._model is None:
        what = "reads layer inputs and output gradients"
        if not any(statistic.NEEDS_PAIRS for statistic in optimizer.statistics):
            what = f"has a block for each layer (partition={optimizer.partition!r})"
        raise TypeError(f"{name} {what}: pass the model, {name}(model, ...)")
    _check_structure(optimizer, structure, joined=optimizer.partition == "model")
    channels = [statistic.CHANNEL for statistic in optimizer.statistics]
    if len(set(channels)) != len(channels) or not channels:
        raise UnsupportedObservationError(
            f"statistics={[s.NAME for s in optimizer.statistics]}: give one statistic, or one of rows and one of probes"
        )
    if optimizer.loss_reduction not in ("mean", "sum"):
        raise ValueError(f"loss_reduction={optimizer.loss_reduction!r}: choose 'mean' or 'sum'")


def check_blocks(optimizer: NaturalGradient, table: BlockTable) -> None:
    """Every entry of a mapping of structures decides about a block, and its structure can do what the blocks need.

    Raises:
        ValueError: if an entry matches nothing or is hidden by the entries before it.
        UnsupportedObservationError: naming the block, if its structure does not fit statistics, chain or mode.
    """
    selection, model = optimizer.selection, optimizer._model
    if selection.rules:
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        names += [] if model is None else [name for name, _ in model.named_parameters()]
        covered = {name for block in table.blocks for name in block.layout.names}
        used = [block.key for block in table.blocks]
        used += [selection.choose(model, [name])[0] for name in dict.fromkeys(names) if name not in covered]
        selection.check(model, names, used)
    for block, group in table:
        if block.structure is selection.default:
            continue
        with in_block(block.name):
            _check_structure(optimizer, block.structure, joined=block.joined)
        if group["variational"] and group["sampled"] and "sample" not in block.structure.SUPPORTS:
            raise UnsupportedObservationError(
                f"block {block.name!r}: {type(block.structure).__name__} cannot sample; give the block another "
                "structure, or use variational=False"
            )


def _check_structure(optimizer: NaturalGradient, structure: Structure, *, joined: bool) -> None:
    """The structure can be fed with the statistics and has the powers that the chain asks for."""
    name = type(structure).__name__
    for statistic in optimizer.statistics:
        if statistic.CHANNEL not in structure.OBSERVES:
            raise UnsupportedObservationError(
                f"{name} cannot be fed with the statistic {statistic.NAME!r} ({statistic.CHANNEL})"
                f"; it takes {sorted(structure.OBSERVES)}"
            )
        if missing := structure.reads - statistic.GIVES:
            raise UnsupportedObservationError(
                f"{name} reads {', '.join(sorted(missing))}, which the statistic {statistic.NAME!r} does not give; use "
                "another statistic ('empirical', 'mc', 'ggn'), or a structure that reads inputs alone (LocalFisher)"
            )
        if statistic.CHANNEL == "rows":
            _feed_once(structure, statistic, joined=joined)
    for step in optimizer.chain:
        if isinstance(step, Solve) and step.exponent != 1.0 and "exponent" not in structure.SUPPORTS:
            raise UnsupportedObservationError(
                f"{name} has no powers; use Solve(exponent=1.0), or a structure with 'exponent' in SUPPORTS"
            )
        if isinstance(step, PseudoSolve) and "pseudo_inverse" not in structure.SUPPORTS:
            raise UnsupportedObservationError(
                f"{name} has no pseudo-inverse; use Solve, or a structure with 'pseudo_inverse' in SUPPORTS"
            )


def _feed_once(structure: Structure, statistic: Statistic, *, joined: bool) -> None:
    """Show the structure one tiny row of the kind that it will see; it raises if it cannot read it."""
    zeros = partial(torch.zeros, dtype=torch.float32)
    pair = Rows(zeros(1, 1, 2), zeros(1, 1, 1, 2), outputs=zeros(1, 1, 2))
    row: AnyRows = JoinedRows((pair,)) if joined else pair
    if not statistic.NEEDS_PAIRS:
        row = GradientRow(zeros(*row.shape))
    structure.observe(structure.init(row.shape, initial=0.0, dtype=torch.float32, device="cpu"), row)


def check_group(optimizer: NaturalGradient, group: Mapping[str, Any]) -> None:
    """Ranges of a group's entries.

    Raises:
        ValueError: naming the entry, its value, its range and the remedy.
        UnsupportedObservationError: if a variational group's structure cannot sample.
    """
    for name, parameter in zip(group["param_names"], group["params"], strict=True):
        if parameter.requires_grad and not parameter.is_floating_point():
            raise ValueError(
                f"parameter {name!r} has dtype {parameter.dtype}, but curvature is that of real numbers: hold real and "
                "imaginary part in two parameters, or freeze it with requires_grad_(False)"
            )
    _in_range("lr", group["lr"], 0.0, math.inf)
    _in_range("weight_decay", group["weight_decay"], 0.0, math.inf)
    _in_range("damping", group["damping"], 0.0, math.inf)
    _in_range("curvature_decay", group["curvature_decay"], 0.0, 1.0)
    _in_range("momentum", group["momentum"], 0.0, math.nextafter(1.0, 0.0))
    for key in ("refresh_every", "observe_every", "mc_samples"):
        if int(group[key]) != group[key] or group[key] < 1:
            raise ValueError(f"{key}={group[key]} must be a whole number >= 1")
    overhead = group.get("overhead")
    if overhead is not None and not 0.0 < overhead < math.inf:
        raise ValueError(f"overhead={overhead} must be a positive share of a step's time, such as 0.05, or None")
    initial = group["initial_curvature"]
    if initial != "first_batch":
        if isinstance(initial, str):
            raise ValueError(f"initial_curvature={initial!r}: choose 'first_batch', 'auto' or a number >= 0")
        _in_range("initial_curvature", initial, 0.0, math.inf)
    if any(statistic.NAME == "price" for statistic in optimizer.statistics) and (
        initial == "first_batch" or not initial
    ):
        raise ValueError("the Price statistic learns from its own noise and needs a start: give initial_curvature > 0")
    if optimizer.antithetic and group["mc_samples"] % 2:
        raise ValueError(f"antithetic=True draws mirrored pairs: mc_samples={group['mc_samples']} must be even")
    if isinstance(group["ess"], str):
        raise ValueError(f"a param group has ess={group['ess']!r}: groups take numbers, the optimizer takes ess='auto'")
    if group["ess"] is not None and not (group["ess"] > 0):
        raise ValueError(
            f"ess={group['ess']} must be positive: ess = number of training examples * augmentation / temperature"
        )
    if group["variational"] and group["sampled"]:
        if group["ess"] is None:
            raise ValueError(
                f"{type(optimizer).__name__} samples weights and needs the effective sample size: pass "
                "ess=len(train_set), or variational=False"
            )
        if "sample" not in optimizer.structure.SUPPORTS:
            raise UnsupportedObservationError(
                f"{type(optimizer.structure).__name__} cannot sample; use variational=False or another structure"
            )


def _in_range(key: str, value: float, low: float, high: float) -> None:
    if not (low <= value <= high):
        raise ValueError(f"{key}={value} is out of range: it must lie in [{low:g}, {high:g}]")
