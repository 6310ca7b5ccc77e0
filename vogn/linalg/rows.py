"""Per-example gradients of one block, kept implicit as pairs of layer inputs and output gradients.

Four kinds share one interface: :class:`Rows` (a layer), :class:`IndexedRows` (an embedding, whose inputs are one-hot),
:class:`GradientRow` (the mini-batch gradient as a single row) and :class:`JoinedRows` (a group of layers seen as one
long vector).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vogn.errors import UnsupportedObservationError
from vogn.kernels import kernel
from vogn.kernels.reference import chunk_elements
from vogn.types import Shape


@dataclass(eq=False)
class Total:
    """Where whoever goes through rows one by one leaves their sum.

    Args:
        value: the sum over columns and examples, ``(*lead, d_out, d_in)``; ``None`` as long as nobody has formed it.
    """

    value: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """Implicit rows ``J[k, n] = sum_t g[k, n, t] a[n, t]^T`` of one block.

    Args:
        a: layer inputs, ``(*lead, N, T, d_in)``; a bias is a trailing input of ones.
        g: per-example output gradients, ``(*lead, K, N, T, d_out)``. ``K`` counts the columns of an output Hessian's
            square root or draws of labels: ``sum_k J[k, n]^T J[k, n]`` is one example's curvature, so ``K`` is never
            folded into ``N``.
        mask: ``(N, T)`` booleans, or ``(*lead, N, T)`` where sub-blocks differ: ``False`` where a position is padding;
            ``None`` if every position counts.
        outputs: layer outputs ``(*lead, N, T, d_out)`` for the few structures that read them.
        places: where the examples stand in the data set, integers ``(N,)``; ``None`` if nobody has said.
        total: asks :meth:`squares` to leave the sum of the rows there too, if it forms them.

    ``lead`` holds independent sub-blocks (groups of a convolution, channels of a norm).

    Example:
        >>> rows = Rows(a=torch.tensor([[[1.0, 2.0]]]), g=torch.tensor([[[[3.0]]]]))  # one example, one position
        >>> rows.dense()
        tensor([[[[3., 6.]]]])
        >>> rows.squares()
        tensor([[ 9., 36.]])
    """

    a: Tensor
    g: Tensor
    mask: Tensor | None = None
    outputs: Tensor | None = None
    places: Tensor | None = None
    total: Total | None = None

    def changed(self, **changes: Any) -> Rows:
        """The same rows with other fields."""
        return replace(self, **changes)

    @property
    def count(self) -> int:
        """Number of examples ``N``."""
        return self.a.shape[-3]

    @property
    def columns(self) -> int:
        """Number of columns ``K`` per example."""
        return self.g.shape[-4]

    @property
    def shape(self) -> Shape:
        """Block shape ``(*lead, d_out, d_in)``."""
        return (*self.a.shape[:-3], self.g.shape[-1], self.a.shape[-1])

    def dense(self) -> Tensor:
        """Explicit rows, ``(K, N, *lead, d_out, d_in)``."""
        rows = kernel("row_dense")(self.a, self.g)
        lead = rows.ndim - 4
        return rows.permute(lead, lead + 1, *range(lead), lead + 2, lead + 3)

    def pieces(self) -> Iterator[Tensor]:
        """Explicit rows of a few examples after the other, ``(*lead, K, n, d_out, d_in)``."""
        for start, stop in self._parts():
            yield kernel("row_dense")(self.a[..., start:stop, :, :], self.g[..., start:stop, :, :])

    def _parts(self) -> Iterator[tuple[int, int]]:
        """Examples whose explicit rows fit into the budget of the kernels; one part if there are none."""
        chunk = max(1, chunk_elements(self.g) // max(1, self.columns * math.prod(self.shape)))
        for start in range(0, max(1, self.count), chunk):
            yield start, start + chunk

    def squares(self) -> Tensor:
        """``sum_{k,n} J[k, n]^2`` elementwise, ``(*lead, d_out, d_in)``."""
        if self.total is None or self.a.shape[-2] == 1:  # one position: no row is formed
            return kernel("row_squares")(self.a, self.g)
        self.total.value = self.g.new_zeros(self.shape)
        return kernel("row_squares")(self.a, self.g, self.total.value)

    def gram(self) -> Tensor:
        """``J J^T``, ``(K N, K N)`` with ``k`` slow and ``n`` fast."""
        return kernel("row_gram")(self.a, self.g)

    def matvec(self, v: Tensor) -> Tensor:
        """``J v`` for a block vector ``v``; returns ``(K, N)``."""
        return kernel("row_matvec")(self.a, self.g, v)

    def rmatvec(self, c: Tensor) -> Tensor:
        """``J^T c`` for ``c`` of shape ``(K, N)``; returns a block vector."""
        return kernel("row_rmatvec")(self.a, self.g, c)

    def first(self, count: int, factor: float) -> Rows:
        """The first ``count`` examples, times ``factor``."""
        mask = None if self.mask is None else self.mask[..., :count, :]
        outputs = None if self.outputs is None else self.outputs[..., :count, :, :]
        return Rows(self.a[..., :count, :, :], self.g[..., :count, :, :] * factor, mask, outputs)


@dataclass(frozen=True)
class IndexedRows:
    """Rows of a table look-up: ``a[n, t]`` is the unit vector of ``index[n, t]`` and is only formed on request.

    Args:
        index: looked up entries, integers in ``[0, size)``, ``(N, T)``.
        g: per-example output gradients, ``(K, N, T, d_out)``, zero where ``mask`` is ``False``.
        size: number of entries of the table, the block's ``d_in``.
        mask: ``(N, T)`` booleans, ``False`` where a position is padding; ``None`` if every position counts.
        outputs: layer outputs ``(N, T, d_out)`` for the few structures that read them.
        places: as for :class:`Rows`.
    """

    index: Tensor
    g: Tensor
    size: int
    mask: Tensor | None = None
    outputs: Tensor | None = None
    places: Tensor | None = None

    def changed(self, **changes: Any) -> IndexedRows:
        """The same rows with other fields."""
        return replace(self, **changes)

    @property
    def a(self) -> Tensor:
        """The one-hot inputs ``(N, T, size)``, zero where masked; built anew at every access."""
        a = F.one_hot(self.index, self.size).to(self.g.dtype)
        return a if self.mask is None else a * self.mask.unsqueeze(-1)

    @property
    def count(self) -> int:
        """Number of examples ``N``."""
        return self.index.shape[0]

    @property
    def columns(self) -> int:
        """Number of columns ``K`` per example."""
        return self.g.shape[0]

    @property
    def shape(self) -> Shape:
        """Block shape ``(d_out, size)``."""
        return (self.g.shape[-1], self.size)

    def dense(self) -> Tensor:
        """Explicit rows, ``(K, N, d_out, size)``."""
        return self._tables(self.index, self.size, self.g).transpose(-1, -2)

    def squares(self) -> Tensor:
        """``sum_{k,n} J[k, n]^2`` elementwise, ``(d_out, size)``; repeated entries of one example are added first."""
        examples = torch.arange(self.count, device=self.index.device).unsqueeze(1)
        pairs, inverse = torch.unique(examples * self.size + self.index, return_inverse=True)
        sums = self.g.new_zeros((self.columns, pairs.numel(), self.g.shape[-1]))
        sums.index_add_(1, inverse.flatten(), self.g.flatten(1, 2))
        table = self.g.new_zeros((self.size, self.g.shape[-1]))
        return table.index_add_(0, pairs % self.size, sums.square_().sum(0)).T

    def gram(self) -> Tensor:
        """``J J^T``, ``(K N, K N)``, over the entries that occur; one output column at a time."""
        used, inverse = torch.unique(self.index, return_inverse=True)
        total = self.g.new_zeros((self.columns * self.count,) * 2)
        for column in self.g.split(1, -1):
            rows = self._tables(inverse, used.numel(), column).flatten(2).flatten(0, 1)
            total.addmm_(rows, rows.T)
        return total

    def matvec(self, v: Tensor) -> Tensor:
        """``J v`` for a block vector ``v`` of shape ``(d_out, size)``; returns ``(K, N)``."""
        return (self.g * v.T[self.index]).sum((-1, -2))

    def rmatvec(self, c: Tensor) -> Tensor:
        """``J^T c`` for ``c`` of shape ``(K, N)``; returns a block vector."""
        weighted = (self.g * c[..., None, None]).sum(0).flatten(0, 1)
        return weighted.new_zeros((self.size, weighted.shape[-1])).index_add_(0, self.index.flatten(), weighted).T

    def first(self, count: int, factor: float) -> IndexedRows:
        """The first ``count`` examples, times ``factor``."""
        mask = None if self.mask is None else self.mask[:count]
        outputs = None if self.outputs is None else self.outputs[:count]
        return IndexedRows(self.index[:count], self.g[:, :count] * factor, self.size, mask, outputs)

    @staticmethod
    def _tables(index: Tensor, size: int, g: Tensor) -> Tensor:
        """The gradient of every example's table, ``(K, N, size, d)``."""
        examples = torch.arange(index.shape[0], device=index.device).unsqueeze(1)
        flat = g.new_zeros((g.shape[0], index.shape[0] * size, g.shape[-1]))
        flat.index_add_(1, (examples * size + index).flatten(), g.flatten(1, 2))
        return flat.unflatten(1, (index.shape[0], size))


@dataclass(frozen=True)
class GradientRow:
    """The mini-batch gradient ``G`` as one row (``a = G``, ``g = I``).

    Args:
        gradient: block vector ``(*lead, d_out, d_in)``.
    """

    gradient: Tensor

    count: int = 1
    columns: int = 1

    @property
    def shape(self) -> Shape:
        """Block shape ``(*lead, d_out, d_in)``."""
        return tuple(self.gradient.shape)

    @property
    def a(self) -> Tensor:
        """``G`` as inputs ``(*lead, 1, d_out, d_in)``."""
        return self.gradient.unsqueeze(-3)

    @property
    def g(self) -> Tensor:
        """The identity as output gradients ``(*lead, 1, 1, d_out, d_out)``."""
        d_out = self.gradient.shape[-2]
        eye = torch.eye(d_out, dtype=self.gradient.dtype, device=self.gradient.device)
        return eye.expand(*self.gradient.shape[:-2], 1, 1, d_out, d_out)

    @property
    def mask(self) -> None:
        """No position is masked."""
        return None

    @property
    def places(self) -> None:
        """A gradient is no example's."""
        return None

    def dense(self) -> Tensor:
        """``(1, 1, *lead, d_out, d_in)``."""
        return self.gradient[None, None]

    def squares(self) -> Tensor:
        """``G^2`` elementwise."""
        return self.gradient.square()

    def gram(self) -> Tensor:
        """``|G|^2`` as a 1 x 1 matrix."""
        return self.gradient.square().sum().reshape(1, 1)

    def matvec(self, v: Tensor) -> Tensor:
        """``<G, v>`` as a 1 x 1 matrix."""
        return (self.gradient * v).sum().reshape(1, 1)

    def rmatvec(self, c: Tensor) -> Tensor:
        """``c G``."""
        return self.gradient * c.reshape(())

    def first(self, count: int, factor: float) -> GradientRow:
        """The one row, times ``factor``."""
        return GradientRow(self.gradient * factor)


@dataclass(frozen=True)
class JoinedRows:
    """Rows of a group of blocks, seen as one vector of length ``D``: block shape ``(D, 1)``.

    Args:
        members: rows of the members in the order of the group; all with the same ``K`` and ``N``.

    Raises:
        UnsupportedObservationError: if the members disagree about the number of examples.
    """

    members: tuple[Rows | IndexedRows | GradientRow, ...]

    def __post_init__(self) -> None:
        sizes = {(rows.columns, rows.count) for rows in self.members}
        if len(sizes) != 1:
            raise UnsupportedObservationError(
                f"the members of a joined block saw different numbers of (columns, examples): {sorted(sizes)}; "
                "use partition='layer' for models whose layers see different batches"
            )

    @property
    def count(self) -> int:
        """Number of examples ``N``."""
        return self.members[0].count

    @property
    def columns(self) -> int:
        """Number of columns ``K`` per example."""
        return self.members[0].columns

    @property
    def places(self) -> Tensor | None:
        """Where the examples stand in the data set."""
        return next((rows.places for rows in self.members if rows.places is not None), None)

    @property
    def shape(self) -> Shape:
        """``(D, 1)``."""
        return (sum(math.prod(rows.shape) for rows in self.members), 1)

    def dense(self) -> Tensor:
        """``(K, N, D, 1)``."""
        return torch.cat([rows.dense().flatten(2) for rows in self.members], 2).unsqueeze(-1)

    def squares(self) -> Tensor:
        """``(D, 1)``."""
        return torch.cat([rows.squares().flatten() for rows in self.members]).unsqueeze(-1)

    def gram(self) -> Tensor:
        """Sum of the members' Gram matrices."""
        total = self.members[0].gram()
        for rows in self.members[1:]:
            total = total + rows.gram()
        return total

    def matvec(self, v: Tensor) -> Tensor:
        """``J v`` for ``v`` of shape ``(D, 1)``."""
        sizes = [math.prod(rows.shape) for rows in self.members]
        parts = v.flatten().split(sizes)
        products = [rows.matvec(part.view(rows.shape)) for rows, part in zip(self.members, parts, strict=True)]
        return torch.stack(products).sum(0)

    def rmatvec(self, c: Tensor) -> Tensor:
        """``J^T c`` of shape ``(D, 1)``."""
        return torch.cat([rows.rmatvec(c).flatten() for rows in self.members]).unsqueeze(-1)

    def first(self, count: int, factor: float) -> JoinedRows:
        """The first ``count`` examples, times ``factor``."""
        return JoinedRows(tuple(rows.first(count, factor) for rows in self.members))


AnyRows = Rows | IndexedRows | GradientRow | JoinedRows
