"""Where the state of a block is held and its arithmetic done, where several processes share its parameters.

The arithmetic of a block knows one kind of vector: the part of the block vector that this process computes with. A
:class:`Placement` turns parameters and gradients into that vector and back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence

import torch
from torch import Tensor

from vogn.distributed.replicas import Replicas
from vogn.distributed.sharding import own_shard, placed_like, spans, whole, with_shard
from vogn.kernels import rooms
from vogn.linalg.layout import Layout
from vogn.types import Shape, State


class Placement(ABC):
    """Who holds which part of one block.

    Attributes:
        shape: of the vectors that this process computes with.
        held: whether this process computes anything of the block.
        counts: whether its part counts in sums over the processes: every element counts once.
        divided: whether the processes hold different things.
        copied: whether several processes hold the same part, which must not drift apart.
        owner: the process that holds all, ``None`` if there is none.
    """

    shape: Shape
    held: bool = True
    counts: bool = True
    divided: bool = True
    copied: bool = False
    owner: int | None = None

    @abstractmethod
    def collect(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """Parameters, or what is placed like them, as this process's vector; ``None`` if it holds nothing."""

    @abstractmethod
    def spread(self, vector: Tensor | None) -> dict[str, Tensor]:
        """This process's vector as tensors that are placed like the parameters."""

    def cut(self, vector: Tensor) -> Tensor:
        """This process's part of a block vector that it has as a whole; batch dimensions in front are carried along."""
        return vector

    def share(self, vector: Tensor, rank: int) -> Tensor:
        """A process's part of a block vector; see :meth:`cut`."""
        return vector

    @abstractmethod
    def gather(self, state: State) -> State:
        """The whole of a state that this process has its part of; on every process."""

    @abstractmethod
    def keep(self, state: State, everywhere: Container[str]) -> State:
        """This process's part of a whole state.

        Args:
            state: block vectors, and single numbers.
            everywhere: what processes keep although another one owns the block.
        """


class Everywhere(Placement):
    """Every process computes the whole block; parameters are gathered if they are sharded.

    Args:
        layout: of the block.
        parameters: in the order of the layout.
        rank: of this process.
    """

    divided = False

    def __init__(self, layout: Layout, parameters: Sequence[Tensor], rank: int = 0) -> None:
        self._layout, self._parameters = layout, dict(zip(layout.names, parameters, strict=True))
        self.shape, self.counts = layout.block_shape, rank == 0

    def collect(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`Placement.collect`."""
        return self._layout.pack({name: whole(tensor) for name, tensor in tensors.items()}, cat=rooms.cat)

    def spread(self, vector: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`Placement.spread`."""
        assert vector is not None
        values = self._layout.unpack(vector)
        return {name: placed_like(parameter, values[name]) for name, parameter in self._parameters.items()}

    def gather(self, state: State) -> State:
        """See :meth:`Placement.gather`."""
        return state

    def keep(self, state: State, everywhere: Container[str]) -> State:
        """See :meth:`Placement.keep`."""
        return state


class Shares:
    """The elements of a block by the process that holds them: the shards of its parameters, one after the other.

    Args:
        layout: of the block.
        parameters: sharded, in the order of the layout.
        replicas: the processes.
    """

    def __init__(self, layout: Layout, parameters: Sequence[Tensor], replicas: Replicas) -> None:
        self.layout, self.replicas = layout, replicas
        self.parameters = dict(zip(layout.names, parameters, strict=True))
        self._spans = {name: spans(parameter, replicas.global_ranks) for name, parameter in self.parameters.items()}
        self.sizes = [sum(self._shape(name, rank).numel() for name in layout.names) for rank in range(replicas.size)]
        self.counts = all(found[replicas.rank].counts for found in self._spans.values())
        self.copied = not all(span.counts for found in self._spans.values() for span in found)

    def of(self, vector: Tensor, rank: int) -> Tensor:
        """The elements of a process as ``(*batch, n, 1)``, from a block vector."""
        batch = vector.shape[: vector.ndim - len(self.layout.block_shape)]
        if not batch.numel():
            return vector.new_empty((*batch, self.sizes[rank], 1))
        pieces = []
        for name, tensor in self.layout.unpack(vector).items():
            span = self._spans[name][rank]
            piece = tensor.narrow(len(batch) + span.dim, span.start, span.length)
            pieces.append(piece.reshape(*batch, piece.shape[len(batch) :].numel()))
        return torch.cat(pieces, -1).unsqueeze(-1)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The block vector, from the elements ``(*batch, n, 1)`` of all processes."""
        batch = parts[0].shape[:-2]
        named = {}
        for name, offset in self._offsets().items():
            pieces = []
            for rank, (part, start) in enumerate(zip(parts, offset, strict=True)):
                shape, span = self._shape(name, rank), self._spans[name][rank]
                if span.counts:
                    pieces.append((span, part[..., start : start + shape.numel(), 0].reshape(*batch, *shape)))
            pieces.sort(key=lambda piece: (piece[0].start, piece[0].length))
            named[name] = torch.cat([tensor for _, tensor in pieces], len(batch) + pieces[0][0].dim)
        return self.layout.pack(named)

    def own(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """This process's elements ``(n, 1)``, from what is placed like the parameters."""
        return torch.cat([own_shard(tensors[name]).reshape(-1) for name in self.layout.names]).unsqueeze(-1)

    def placed(self, part: Tensor) -> dict[str, Tensor]:
        """This process's elements as tensors that are placed like the parameters."""
        rank = self.replicas.rank
        shapes = [self._shape(name, rank) for name in self.layout.names]
        pieces = part.flatten().split([shape.numel() for shape in shapes])
        return {
            name: with_shard(parameter, piece.view(shape))
            for (name, parameter), piece, shape in zip(self.parameters.items(), pieces, shapes, strict=True)
        }

    def _shape(self, name: str, rank: int) -> torch.Size:
        span, shape = self._spans[name][rank], list(self.parameters[name].shape)
        shape[span.dim] = span.length
        return torch.Size(shape)

    def _offsets(self) -> dict[str, list[int]]:
        """Where each parameter's elements begin, by process."""
        ends = [0] * self.replicas.size
        out = {}
        for name in self.layout.names:
            out[name] = ends
            ends = [end + self._shape(name, rank).numel() for rank, end in enumerate(ends)]
        return out


class Divided(Placement):
    """Every process computes with the elements of its shards: ``(n, 1)``. For arithmetic that is elementwise.

    Args:
        shares: who holds which elements.
    """

    def __init__(self, shares: Shares) -> None:
        self.shares = shares
        self.shape, self.counts = (shares.sizes[shares.replicas.rank], 1), shares.counts
        self.copied = shares.copied

    def collect(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """See :meth:`Placement.collect`; without communication."""
        return self.shares.own(tensors)

    def spread(self, vector: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`Placement.spread`; without communication."""
        assert vector is not None
        return self.shares.placed(vector)

    def cut(self, vector: Tensor) -> Tensor:
        """See :meth:`Placement.cut`."""
        return self.shares.of(vector, self.shares.replicas.rank)

    def share(self, vector: Tensor, rank: int) -> Tensor:
        """See :meth:`Placement.share`."""
        return self.shares.of(vector, rank)

    def gather(self, state: State) -> State:
        """See :meth:`Placement.gather`."""
        return {key: self._whole(tensor) if tensor.ndim else tensor for key, tensor in state.items()}

    def _whole(self, part: Tensor) -> Tensor:
        batch, shares = part.shape[:-2], self.shares
        if not batch.numel():
            return part.new_empty((*batch, *shares.layout.block_shape))
        sizes = [batch.numel() * size for size in shares.sizes]
        parts = shares.replicas.all_gather_flat(part.reshape(-1), sizes)
        return shares.join([flat.view(*batch, size, 1) for flat, size in zip(parts, shares.sizes, strict=True)])

    def keep(self, state: State, everywhere: Container[str]) -> State:
        """See :meth:`Placement.keep`."""
        return {key: self.cut(tensor) if tensor.ndim else tensor for key, tensor in state.items()}


class Owned(Placement):
    """One process computes the whole block; it gathers gradients and means, and scatters samples and means.

    Args:
        shares: who holds which elements of the parameters.
        owner: the process, in [0, size).
        dtype: of the block vectors.
    """

    def __init__(self, shares: Shares, owner: int, dtype: torch.dtype) -> None:
        self.shares, self.owner = shares, owner
        self.shape = shares.layout.block_shape
        self.held = self.counts = shares.replicas.rank == owner
        device = own_shard(next(iter(shares.parameters.values()))).device
        self._empty = torch.empty(0, dtype=dtype, device=device)

    def collect(self, tensors: Mapping[str, Tensor]) -> Tensor | None:
        """See :meth:`Placement.collect`."""
        parts = self.shares.replicas.gather_flat(self.shares.own(tensors).flatten(), self.shares.sizes, self._rank)
        return None if parts is None else self.shares.join([part.unsqueeze(-1) for part in parts])

    def spread(self, vector: Tensor | None) -> dict[str, Tensor]:
        """See :meth:`Placement.spread`."""
        shares = self.shares
        pieces = None
        if vector is not None:
            pieces = [shares.of(vector, rank).flatten() for rank in range(shares.replicas.size)]
        return shares.placed(shares.replicas.scatter_flat(pieces, self._empty, shares.sizes, self._rank))

    def gather(self, state: State) -> State:
        """See :meth:`Placement.gather`."""
        return self.shares.replicas.broadcast_tensors(state if self.held else None, self._empty.device, self._rank)

    def keep(self, state: State, everywhere: Container[str]) -> State:
        """See :meth:`Placement.keep`."""
        return state if self.held else {key: tensor for key, tensor in state.items() if key in everywhere}

    @property
    def _rank(self) -> int:
        assert self.owner is not None
        return self.owner
