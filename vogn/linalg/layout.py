"""How the parameters of a block are packed into one block vector ``(*lead, d_out, d_in)`` and back.

A layout is plain data: it is written into checkpoints and lets a posterior live without the optimizer or the model.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from vogn.types import Shape

Cat = Callable[[list[Tensor], int], Tensor]


class Layout(ABC):
    """Packing of named parameters into a block vector. Batch dimensions in front are carried along."""

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    @abstractmethod
    def block_shape(self) -> Shape:
        """``(*lead, d_out, d_in)``."""

    @abstractmethod
    def pack(self, tensors: Mapping[str, Tensor], *, cat: Cat = torch.cat) -> Tensor:
        """``{name: (*batch, *shape)}`` to ``(*batch, *block_shape)``; ``cat`` is what concatenates."""

    @abstractmethod
    def unpack(self, block: Tensor) -> dict[str, Tensor]:
        """``(*batch, *block_shape)`` to ``{name: (*batch, *shape)}``."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """Plain description; see :func:`layout_from_dict`."""

    @property
    def numel(self) -> int:
        """Number of parameters in the block."""
        return math.prod(self.block_shape)

    @property
    def constants(self) -> tuple[tuple[str, int], ...]:
        """Name of a parameter and place in its first dimension, of all that are no weights: they never get noise."""
        return ()

    def without_constants(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``{name: (*batch, *shape)}`` with zero where there is no weight; the others as they are."""
        found, shapes = dict(tensors), dict(zip(self.names, self.shapes, strict=True))
        for name, place in self.constants:
            if name in found:
                found[name] = found[name].clone()
                found[name].select(-len(shapes[name]), place).zero_()
        return found


@dataclass(frozen=True)
class MatrixLayout(Layout):
    """A weight as ``(*lead, d_out, d_in)``, its bias as a last input column. Either may be absent.

    Args:
        names: ``(weight, bias)``, ``(weight,)`` or ``(bias,)``.
        shapes: shapes of these parameters.
        matrix: ``(*lead, d_out, d_in)`` of the weight without the bias column; ``d_in = 0`` if there is only a bias.
        permute: order of the weight's dimensions before it is reshaped (transposed weights); ``()`` keeps them.
        view: shape in which ``permute`` counts the dimensions (groups split off a dimension); ``()`` is the weight's.
        constant: place in the weight's first dimension that no gradient of its layer reaches (the ``padding_idx`` of an
            embedding). Layouts that differ in it alone pack alike and are equal.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]
    matrix: Shape
    permute: tuple[int, ...] = ()
    view: Shape = ()
    constant: int | None = field(default=None, compare=False)

    @property
    def constants(self) -> tuple[tuple[str, int], ...]:
        """See :attr:`Layout.constants`."""
        return () if self.constant is None else ((self.names[0], self.constant),)

    @property
    def has_weight(self) -> bool:
        """Whether the first parameter is a weight."""
        return self.matrix[-1] > 0

    @property
    def has_bias(self) -> bool:
        """Whether the last parameter is a bias."""
        return len(self.names) == 2 or not self.has_weight

    @property
    def block_shape(self) -> Shape:
        """``(*lead, d_out, d_in + has_bias)``."""
        return (*self.matrix[:-1], self.matrix[-1] + int(self.has_bias))

    def pack(self, tensors: Mapping[str, Tensor], *, cat: Cat = torch.cat) -> Tensor:
        """See :meth:`Layout.pack`."""
        parts = []
        if self.has_weight:
            weight = tensors[self.names[0]]
            batch = weight.shape[: weight.ndim - len(self.shapes[0])]
            if self.permute:
                offset = len(batch)
                weight = weight.reshape(*batch, *(self.view or self.shapes[0]))
                weight = weight.permute(*range(offset), *(offset + d for d in self.permute))
            parts.append(weight.reshape(*batch, *self.matrix))
        if self.has_bias:
            bias = tensors[self.names[-1]]
            batch = bias.shape[: bias.ndim - len(self.shapes[-1])]
            parts.append(bias.reshape(*batch, *self.matrix[:-1], 1))
        return parts[0] if len(parts) == 1 else cat(parts, -1)

    def unpack(self, block: Tensor) -> dict[str, Tensor]:
        """See :meth:`Layout.unpack`."""
        batch = block.shape[: block.ndim - len(self.matrix)]
        out = {}
        if self.has_weight:
            weight = block[..., : self.matrix[-1]]
            shape = self.shapes[0]
            if self.permute:
                offset = len(batch)
                view = self.view or shape
                inverse = sorted(range(len(view)), key=self.permute.__getitem__)
                weight = weight.reshape(*batch, *(view[d] for d in self.permute))
                weight = weight.permute(*range(offset), *(offset + d for d in inverse))
            out[self.names[0]] = weight.reshape((*batch, *shape))
        if self.has_bias:
            out[self.names[-1]] = block[..., -1].reshape((*batch, *self.shapes[-1]))
        return out

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Layout.to_dict`."""
        return {
            "kind": "matrix",
            "names": list(self.names),
            "shapes": [list(s) for s in self.shapes],
            "matrix": list(self.matrix),
            "permute": list(self.permute),
            "view": list(self.view),
        } | ({} if self.constant is None else {"constant": self.constant})


@dataclass(frozen=True)
class StackLayout(Layout):
    """Equally shaped parameters side by side: ``(numel, number of parameters, 1)``.

    A lone parameter becomes ``(numel, 1, 1)``: every element its own sub-block. The scale and shift of a norm become
    ``(channels, 2, 1)``: one 2 x 2 unit block per channel.
    """

    names: tuple[str, ...]
    shapes: tuple[Shape, ...]

    @property
    def block_shape(self) -> Shape:
        """``(numel, number of parameters, 1)``."""
        return (math.prod(self.shapes[0]), len(self.names), 1)

    def pack(self, tensors: Mapping[str, Tensor], *, cat: Cat = torch.cat) -> Tensor:
        """See :meth:`Layout.pack`."""
        parts = []
        for name, shape in zip(self.names, self.shapes, strict=True):
            tensor = tensors[name]
            parts.append(tensor.reshape(*tensor.shape[: tensor.ndim - len(shape)], -1))
        return (parts[0].unsqueeze(-1) if len(parts) == 1 else torch.stack(parts, -1)).unsqueeze(-1)

    def unpack(self, block: Tensor) -> dict[str, Tensor]:
        """See :meth:`Layout.unpack`."""
        batch = block.shape[:-3]
        return {
            name: block[..., j, 0].reshape((*batch, *shape))
            for j, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True))
        }

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Layout.to_dict`."""
        return {"kind": "stack", "names": list(self.names), "shapes": [list(s) for s in self.shapes]}


@dataclass(frozen=True)
class JoinedLayout(Layout):
    """Several blocks as one vector ``(D, 1)``: the members' block vectors, flattened and concatenated."""

    members: tuple[Layout, ...]

    @property
    def names(self) -> tuple[str, ...]:  # type: ignore[override]
        """All parameter names, member by member."""
        return tuple(name for member in self.members for name in member.names)

    @property
    def shapes(self) -> tuple[Shape, ...]:  # type: ignore[override]
        """All parameter shapes, member by member."""
        return tuple(shape for member in self.members for shape in member.shapes)

    @property
    def constants(self) -> tuple[tuple[str, int], ...]:
        """See :attr:`Layout.constants`."""
        return tuple(pair for member in self.members for pair in member.constants)

    @property
    def block_shape(self) -> Shape:
        """``(D, 1)``."""
        return (sum(member.numel for member in self.members), 1)

    def pack(self, tensors: Mapping[str, Tensor], *, cat: Cat = torch.cat) -> Tensor:
        """See :meth:`Layout.pack`."""
        parts = []
        for member in self.members:
            block = member.pack(tensors, cat=cat)
            parts.append(block.reshape(*block.shape[: block.ndim - len(member.block_shape)], -1))
        return cat(parts, -1).unsqueeze(-1)

    def unpack(self, block: Tensor) -> dict[str, Tensor]:
        """See :meth:`Layout.unpack`."""
        out: dict[str, Tensor] = {}
        parts = block.squeeze(-1).split([member.numel for member in self.members], -1)
        for member, part in zip(self.members, parts, strict=True):
            out.update(member.unpack(part.reshape(*part.shape[:-1], *member.block_shape)))
        return out

    def to_dict(self) -> dict[str, Any]:
        """See :meth:`Layout.to_dict`."""
        return {"kind": "joined", "members": [member.to_dict() for member in self.members]}


Lines = tuple[int, int, int]
"""Where a block vector holds the numbers of a parameter in their order: place of the first; number of rows, each in one
piece; distance of the first numbers of two rows."""


@cache
def lines(layout: Layout) -> tuple[Lines, ...] | None:
    """The lines of every parameter; ``None`` if one of them is packed in another order, or has no elements."""
    vector = torch.empty(layout.block_shape, device="meta")
    found = []
    for part in layout.unpack(vector).values():
        if part.untyped_storage()._cdata != vector.untyped_storage()._cdata or not part.numel():
            return None  # a copy: its numbers are in another order
        dims: list[tuple[int, int]] = []  # those that lie one in the other are one
        for size, stride in zip(reversed(part.shape), reversed(part.stride()), strict=True):
            if size == 1:
                continue
            if dims and stride == dims[-1][0] * dims[-1][1]:
                dims[-1] = (dims[-1][0] * size, dims[-1][1])
            else:
                dims.append((size, stride))
        if not dims or dims[0][1] != 1:
            dims.insert(0, (1, 1))
        if len(dims) > 2:
            return None
        rows, distance = dims[1] if len(dims) == 2 else (1, part.numel())
        found.append((int(part.storage_offset()), rows, distance))
    return tuple(found)


def columns(layout: Layout, parameters: Sequence[Tensor]) -> tuple[Tensor, Tensor | None] | None:
    """What the block vector's memory is made of, if it is one parameter, or a weight and a bias.

    Seen as ``(rows, columns)`` and ``(rows,)``, these are side by side in the block vector ``(rows, columns + 1)``.

    Args:
        layout: of the block.
        parameters: in its order; contiguous, or the answer does not hold for their memory.

    Returns:
        They; ``None`` for the second where there is one. ``None`` if the memory is made in another way.
    """
    if not _in_columns(layout):
        return None
    return parameters[0], (parameters[1] if len(parameters) == 2 else None)


@cache
def _in_columns(layout: Layout) -> bool:
    found = lines(layout)
    if found is None or len(found) > 2:
        return False
    if len(found) == 1:
        return found[0] == (0, 1, layout.numel)
    rows, width = math.prod(layout.block_shape[:-1]), layout.block_shape[-1]
    ends = ((0, 1, width - 1), (width - 1, 1, 1)) if rows == 1 else ((0, rows, width), (width - 1, rows, width))
    return found == ends


def layout_from_dict(data: Mapping[str, Any]) -> Layout:
    """Rebuild a layout from :meth:`Layout.to_dict`.

    Raises:
        ValueError: if the kind is unknown.
    """
    if data["kind"] == "joined":
        return JoinedLayout(tuple(layout_from_dict(member) for member in data["members"]))
    names, shapes = tuple(data["names"]), tuple(tuple(shape) for shape in data["shapes"])
    if data["kind"] == "matrix":
        matrix, permute, view = tuple(data["matrix"]), tuple(data["permute"]), tuple(data.get("view", ()))
        return MatrixLayout(names, shapes, matrix, permute, view, data.get("constant"))
    if data["kind"] == "stack":
        return StackLayout(names, shapes)
    raise ValueError(f"unknown layout kind {data['kind']!r}; known kinds: matrix, stack, joined")
