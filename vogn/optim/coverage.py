"""What happens to every parameter: its block, structure, statistic, memory and cost, and why a fallback is used."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from vogn.capture.partition import Block
from vogn.capture.statistics import Statistic
from vogn.layers import find_explicit
from vogn.linalg.layout import MatrixLayout
from vogn.optim.blocks import BlockTable
from vogn.optim.report import Cell, Report, amount
from vogn.structures import EigenKronecker, Kronecker
from vogn.structures.costs import costs

if TYPE_CHECKING:
    from vogn.optim.base import NaturalGradient

OWN_PASS = 1.0 / 3.0
"""Cost of one more backward to the layers' outputs, relative to forward and backward."""


def _extra(row: Mapping[str, Any]) -> str:
    if row["extra_time"] is None:
        return "?" if row["parameter"] == row["block"] else ""
    return f"{row['extra_time']:+.0%}" + (f" per {row['extra_per']}" if row["extra_per"] else "")


class Coverage(Report):
    """One dictionary per parameter, in the order of the param groups.

    ========================= ==========================================================================================
    ``parameter``             its name
    ``block``                 the block it shares a matrix in, named after its first parameter; ``""`` if frozen
    ``layer``                 type of the module that holds it; ``""`` if only parameters are known
    ``shape``                 shape of the block, ``(*lead, d_out, d_in)``
    ``structure``             class name; ``statistics``: names; ``per_example``: where per-example gradients come from
    ``observe_every``         steps between observations; ``refresh_every``: steps between factorisations
    ``sampled``               whether its posterior is sampled; ``frozen``: whether it does not require a gradient
    ``bytes``                 of the optimizer's state of this parameter; that of a block is kept under its first one
    ``extra_time``            multiply-adds of observing, averaged over the steps, over those of the layer's own forward
                              and backward; ``None`` where shapes do not tell
    ``extra_per``             what ``extra_time`` must be multiplied by: ``""``, or ``"output"`` (exact Gauss-Newton)
    ``step_multiply_adds``    of solving, and of refreshing over ``refresh_every``, per step; ``None`` if not known
    ``note``                  why the block is stored or measured in another way than asked for; ``""`` if it is not
    ========================= ==========================================================================================
    """

    COLUMNS: ClassVar[Mapping[str, Cell]] = {
        "parameter": lambda row: row["parameter"],
        "block": lambda row: row["block"],
        "layer": lambda row: row["layer"],
        "shape": lambda row: "x".join(map(str, row["shape"])),
        "structure": lambda row: "frozen" if row["frozen"] and not row["block"] else row["structure"],
        "statistic": lambda row: "+".join(row["statistics"]),
        "refresh": lambda row: str(row["refresh_every"] or ""),
        "bytes": lambda row: str(row["bytes"]),
        "observe": _extra,
        "step": lambda row: "" if row["step_multiply_adds"] is None else amount(row["step_multiply_adds"]),
        "note": lambda row: row["note"],
    }
    RIGHT = frozenset({"refresh", "bytes", "observe", "step"})


def coverage_of(optimizer: NaturalGradient, table: BlockTable) -> Coverage:
    """The rows of all parameters of an optimizer."""
    place = {name: (block, group) for block, group in table for name in block.layout.names}
    layers = _layers(optimizer._model)
    rows = Coverage()
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            row = {
                "parameter": name,
                "layer": layers.get(name, ""),
                "frozen": not parameter.requires_grad,
            }
            if name in place:
                rows.append(row | _tracked(optimizer, table, name, *place[name]))
            else:
                rows.append(row | _untracked())
    rows.remarks = _remarks(optimizer, rows)
    return rows


def _tracked(
    optimizer: NaturalGradient, table: BlockTable, name: str, block: Block, group: Mapping[str, Any]
) -> dict[str, Any]:
    first = name == block.layout.names[0]
    pairs = any(statistic.NEEDS_PAIRS for statistic in optimizer.statistics)
    known = costs(block.structure, block.layout.block_shape)
    extra, per = _extra_time(optimizer.statistics, block)
    return {
        "block": block.name,
        "shape": block.layout.block_shape,
        "structure": type(block.structure).__name__,
        "statistics": [statistic.NAME for statistic in optimizer.statistics],
        "per_example": ("own pass" if block.has_bare else "layer rule") if pairs else "not needed",
        "observe_every": group["observe_every"],
        "refresh_every": group["refresh_every"],
        "sampled": bool(group["sampled"]),
        "bytes": state_bytes(table, block) if first else PLACE_BYTES,
        "extra_time": None if extra is None or not first else extra / group["observe_every"],
        "extra_per": per if first else "",
        "step_multiply_adds": None
        if known is None or not first
        else known.solve + known.refresh / group["refresh_every"],
        "note": note_of(optimizer, block) if first else "",
    }


def _untracked() -> dict[str, Any]:
    return {
        "block": "",
        "shape": (),
        "structure": "",
        "statistics": [],
        "per_example": "",
        "observe_every": None,
        "refresh_every": None,
        "sampled": False,
        "bytes": 0,
        "extra_time": None,
        "extra_per": "",
        "step_multiply_adds": None,
        "note": "frozen: requires_grad=False",
    }


PLACE_BYTES = 8
"""State of a parameter that is not the first of its block: its place there."""


def state_bytes(table: BlockTable, block: Block) -> int:
    """Bytes of a new state of the block, without making one."""
    mean = torch.empty(block.layout.block_shape, dtype=block.curvature_dtype, device="meta")
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(table.start(block, mean)))


def _tensors(state: Mapping[str, Any]) -> list[Tensor]:
    parts = [_tensors(value) if isinstance(value, Mapping) else [value] for value in state.values()]
    return [tensor for part in parts for tensor in part]


def note_of(optimizer: NaturalGradient, block: Block) -> str:
    """Why the block is stored or measured in another way than asked for."""
    bare = block.has_bare and any(statistic.NEEDS_PAIRS for statistic in optimizer.statistics)
    pass_ = "no layer rule: elementwise, by one more backward over all examples" if bare else ""
    tied = TIED if _tied_apart(block) else ""
    return "; ".join(part for part in (block.note, tied, pass_, _forward_note(block)) if part)


def _forward_note(block: Block) -> str:
    """What the explicit forward costs, where the block is measured by one."""
    explicit = {find_explicit(use.module) for m in block.members for use in m.uses or (m,) if use.site and use.module}
    return "; ".join(sorted({rule.NOTE for rule in explicit if rule is not None and rule.NOTE}))


TIED = "shared by layers that see it in different shapes: elementwise"


def _tied_apart(block: Block) -> bool:
    """Whether a factorised block holds a parameter that its layers see in different shapes (tied embeddings)."""
    factorised = isinstance(block.structure, Kronecker | EigenKronecker)
    return factorised and any(use.layout != member.layout for member in block.members for use in member.uses)


def _layers(model: nn.Module | None) -> dict[str, str]:
    """Parameter name to the type of the module that holds it."""
    if model is None:
        return {}
    names = [name for name, _ in model.named_parameters()]
    return {name: type(model.get_submodule(name.rpartition(".")[0])).__name__ for name in names}


def _extra_time(statistics: tuple[Statistic, ...], block: Block) -> tuple[float | None, str]:
    """Multiply-adds of one observation over those of the layer's forward and backward, and what multiplies them."""
    rows = [statistic for statistic in statistics if statistic.CHANNEL == "rows" and statistic.NEEDS_PAIRS]
    known = costs(block.structure, block.layout.block_shape)
    rule = block.members[0].rule
    matrix = isinstance(block.layout, MatrixLayout) and not (rule is not None and rule.LOOKS_UP)
    if not rows or known is None or known.row is None or block.has_bare or not matrix:
        return None, ""
    own = 0.0 if "backward" in rows[0].WHEN else OWN_PASS
    columns, per = rows[0].columns_per_example
    return columns * (known.row / (3.0 * math.prod(block.layout.block_shape)) + own), per


def _remarks(optimizer: NaturalGradient, rows: Coverage) -> tuple[str, ...]:
    tracked = sum(1 for row in rows if row["block"])
    passes = "; ".join(f"{statistic.NAME}: {statistic.PASSES}" for statistic in optimizer.statistics)
    return (
        f"{len(rows)} parameters, {tracked} tracked, {len(rows) - tracked} frozen; "
        f"{sum(row['bytes'] for row in rows)} bytes of optimizer state",
        f"statistic: {passes}",
        "observe: multiply-adds of observing (own pass included), relative to the layer's forward and backward, at any",
        "         batch size (Dense: with one position per example); ? where shapes do not tell",
        "step: multiply-adds of solving and refreshing per step, whatever the batch",
    )


def announce_fallbacks(optimizer: NaturalGradient, table: BlockTable, announced: set[str]) -> None:
    """Warn, once per block, where a structure is not what was asked for, and once about parameters without a rule."""
    for block in table.blocks:
        if block.note and block.name not in announced:
            announced.add(block.name)
            warnings.warn(
                f"block {block.name!r}: {block.note}. It is stored as {type(block.structure).__name__}; raise the "
                f'limit, or choose with structure={{"{block.name}": ...}}',
                stacklevel=4,
            )
        if _tied_apart(block) and f"tied {block.name}" not in announced:
            announced.add(f"tied {block.name}")
            warnings.warn(
                f"block {block.name!r}: {TIED}, so {type(block.structure).__name__} keeps its diagonal only; untie the "
                f'layers, or say structure={{"{block.name}": "diagonal"}}',
                stacklevel=4,
            )
    if not any(statistic.NEEDS_PAIRS for statistic in optimizer.statistics):
        return
    names = [m.layout.names[0] for block in table.blocks for m in block.members if m.rule is None]
    new = [name for name in names if f"bare {name}" not in announced]
    announced.update(f"bare {name}" for name in new)
    if new:
        more = f" and {len(new) - 3} more" if len(new) > 3 else ""
        warnings.warn(
            f"no layer rule for {', '.join(map(repr, new[:3]))}{more}: the curvature of these parameters is "
            "elementwise and takes one more backward over all examples. Write a rule (vogn.layers.register_layer), "
            "freeze them, or use a method without per-example statistics (IVON, VAdam)",
            stacklevel=4,
        )
