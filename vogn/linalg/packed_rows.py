"""Rows of a block as flat tensors: they can be concatenated, scaled, sent, and read back as rows.

``a`` holds what layers have got, ``g`` what is linear in the output gradients, ``layout`` whole numbers that say where
what is. A layer is packed as its inputs and output gradients where these are at most a share :data:`WORTH` of its rows
written out; else as the rows, which are read more often than they are formed. So a pack is never longer than the rows
of the layers, nor than twice their inputs and outputs. Where no layer has pairs that are worth it there is one leaf,
``J (n, D)``, the rows of the whole block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from vogn.linalg.patch_rows import PatchRows
from vogn.linalg.patches import Patches
from vogn.linalg.rows import AnyRows, GradientRow, IndexedRows, JoinedRows, Rows

WORTH = 0.5
"""Pairs of up to this share of the numbers of the rows are kept as pairs."""

PAIR, LOOKUP, PATCHES = 0, 1, 2
"""Kinds of packed rows; rows written out are pairs with ``a = 1``."""

Layer = Rows | IndexedRows

LEAVES: dict[str, int] = {"J": 1, "a": 0, "g": 1, "layout": 0}
"""The tensors of a pack, and their degree in the output gradients."""


def pack(rows: AnyRows) -> dict[str, Tensor]:
    """``{"a", "g", "layout"}``, each of one dimension, in memory of their own; or ``{"J"}``.

    Inputs of linear layers are brought to a largest element in [1/2, 1) by a power of two, which goes to the output
    gradients: then products of inputs and those of output gradients stay in range as long as those of the rows do.
    """
    members = rows.members if isinstance(rows, JoinedRows) else (rows,)
    kept = [_worth_keeping(member) for member in members]
    if not any(kept):
        return {"J": _explicit(members)}
    inputs, gradients, layout = [], [], [len(members)]
    for member, keep in zip(members, kept, strict=True):
        numbers, a, g = _fields(member if keep and not isinstance(member, GradientRow) else written_out(member))
        layout += numbers
        inputs.append(a.reshape(-1).to(g.dtype))
        gradients.append(g.reshape(-1))
    g = torch.cat(gradients)
    return {"a": torch.cat(inputs), "g": g, "layout": torch.tensor(layout, dtype=g.dtype, device=g.device)}


def _explicit(members: Sequence[Layer | GradientRow]) -> Tensor:
    """The rows of all members side by side, ``(K N, D)``, written one by one."""
    if len(members) == 1:
        return members[0].dense().flatten(2).flatten(0, 1)
    first = members[0].dense()
    size = sum(math.prod(member.shape) for member in members)
    out = first.new_empty((*first.shape[:2], size))
    start = 0
    for member in members:
        part = (first if member is members[0] else member.dense()).flatten(2)
        out[..., start : start + part.shape[2]] = part
        start += part.shape[2]
    return out.flatten(0, 1)


def unpack(leaves: Mapping[str, Tensor]) -> list[Layer]:
    """The layers' rows, all with the same examples in the same order, from the packs of one or several batches.

    Rows of the whole block that are written out are those of one layer.
    """
    explicit = leaves.get("J")
    if "g" not in leaves:
        assert explicit is not None
        return [_as_pairs(explicit.unsqueeze(0))]
    numbers = iter(leaves["layout"].round().long().tolist())
    inputs, gradients = _Reader(leaves["a"]), _Reader(leaves["g"])
    batches = []
    for count in numbers:
        batches.append([_read(numbers, inputs, gradients) for _ in range(count)])
    folded = explicit is not None or len({layers[0].columns for layers in batches}) > 1
    joined = [_joined(parts, folded) for parts in zip(*batches, strict=True)]
    if explicit is None:
        return joined
    parts = explicit.split([math.prod(layer.shape) for layer in joined], 1)
    return [
        _joined([layer, _as_pairs(part.unsqueeze(0))], folded) for layer, part in zip(joined, parts, strict=True)
    ]


def _as_pairs(explicit: Tensor) -> Rows:
    """Rows ``(K, N, D)`` as pairs ``a = 1``, ``g = J`` of a block of shape ``(D, 1)``."""
    return Rows(torch.ones_like(explicit[0, :, :1]).unsqueeze(-1), explicit.unsqueeze(-2))


def written_out(rows: Layer | GradientRow, *, folded: bool = False) -> Rows:
    """The same rows, written out; where ``folded``, columns become examples."""
    explicit = rows.dense().flatten(2)
    return _as_pairs(explicit.flatten(0, 1).unsqueeze(0) if folded else explicit)


def _worth_keeping(rows: Layer | GradientRow) -> bool:
    """Whether rows as they are, are much shorter than written out."""
    if isinstance(rows, GradientRow):
        return False
    if isinstance(rows, IndexedRows) and rows.size > 2.0 / torch.finfo(rows.g.dtype).eps:
        return False  # indices would not be exact as floating numbers
    inputs = rows.patches.x if isinstance(rows, PatchRows) else rows.index if isinstance(rows, IndexedRows) else rows.a
    written = rows.columns * rows.count * math.prod(rows.shape)
    return inputs.numel() + rows.g.numel() <= WORTH * written


def _fields(rows: Layer) -> tuple[list[int], Tensor, Tensor]:
    """Kind, sizes of ``g`` and what else there is to know; what stands for ``a``; and ``g``."""
    head = [rows.g.ndim, *rows.g.shape]
    if isinstance(rows, IndexedRows):
        return [LOOKUP, *head, rows.size], rows.index, rows.g
    if isinstance(rows, PatchRows):
        p = rows.patches
        geometry = [*p.kernel, *p.stride, *p.dilation, p.groups, int(p.bias)]
        return [PATCHES, *head, len(p.kernel), *p.x.shape, *geometry], p.x, rows.g
    if rows.a.shape[-1] == 1:
        return [PAIR, *head, 1], rows.a, rows.g
    largest = rows.a.abs().amax() if rows.a.numel() else rows.a.new_zeros(())
    exponent = torch.frexp(largest)[1].clamp(-120, 120)
    up = torch.ldexp(torch.ones_like(largest), exponent)
    return [PAIR, *head, rows.a.shape[-1]], rows.a / up, rows.g * up


class _Reader:
    """A flat tensor, read from front to back."""

    def __init__(self, flat: Tensor) -> None:
        self.flat, self.place = flat, 0

    def take(self, *shape: int) -> Tensor:
        """The next numbers, as a view of this shape."""
        start, self.place = self.place, self.place + math.prod(shape)
        return self.flat[start : self.place].view(shape)


def _read(numbers: Iterator[int], inputs: _Reader, gradients: _Reader) -> Layer:
    """The next layer."""

    def some(count: int) -> tuple[int, ...]:
        return tuple(next(numbers) for _ in range(count))

    kind, dimensions = some(2)
    shape = some(dimensions)
    g = gradients.take(*shape)
    lead, (count, positions) = shape[:-4], shape[-3:-1]
    if kind == PAIR:
        return Rows(inputs.take(*lead, count, positions, *some(1)), g)
    if kind == LOOKUP:
        return IndexedRows(inputs.take(count, positions).round().long(), g, next(numbers))
    (spatial,) = some(1)
    x = inputs.take(*some(2 + spatial))
    kernel, stride, dilation = some(spatial), some(spatial), some(spatial)
    groups, bias = some(2)
    return PatchRows(Patches(x, kernel, stride, dilation, groups, bool(bias)), g)


def _joined(parts: Sequence[Layer], folded: bool) -> Layer:
    """One layer's rows of all batches: positions are filled up with zeros, batches of different kinds written out."""
    if len(parts) == 1:
        return parts[0]
    if len({_kind(part) for part in parts}) == 1 and not folded:
        first, most = parts[0], max(part.g.shape[-2] for part in parts)
        g = torch.cat([_filled(part.g, most, -2) for part in parts], -3)
        if isinstance(first, PatchRows):
            return PatchRows(replace(first.patches, x=torch.cat([part.patches.x for part in _of(PatchRows, parts)])), g)
        if isinstance(first, IndexedRows):
            indices = [_filled(part.index, most, -1) for part in _of(IndexedRows, parts)]
            return IndexedRows(torch.cat(indices), g, first.size)
        return Rows(torch.cat([_filled(part.a, most, -2) for part in parts], -3), g)
    written = [written_out(part, folded=folded) for part in parts]
    return Rows(torch.cat([part.a for part in written]), torch.cat([part.g for part in written], 1))


def _kind(rows: Layer) -> tuple[object, ...]:
    """What must be equal for rows to be concatenated as they are."""
    if isinstance(rows, PatchRows):
        p = rows.patches
        return PatchRows, p.x.shape[1:], p.kernel, p.stride, p.dilation, p.groups, p.bias
    return type(rows), rows.shape


_Kind = TypeVar("_Kind", PatchRows, IndexedRows)


def _of(kind: type[_Kind], parts: Sequence[Layer]) -> list[_Kind]:
    return [part for part in parts if isinstance(part, kind)]


def _filled(x: Tensor, length: int, dim: int) -> Tensor:
    """``x`` with zeros behind, up to a length of the dimension -1 or -2."""
    return F.pad(x, (0, 0) * (-1 - dim) + (0, length - x.shape[dim]))
