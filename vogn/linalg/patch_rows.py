"""Rows of a convolution, whose patches are only written down where nothing else will do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from vogn.kernels.reference import add_squares, chunk_elements
from vogn.linalg.factors import input_factor
from vogn.linalg.patches import Patches
from vogn.linalg.rows import Rows, Total
from vogn.linalg.self_correlation import pays, second_moment_of_patches
from vogn.linalg.sides import second_moment
from vogn.types import Shape


class PatchRows(Rows):
    """:class:`Rows` whose inputs ``a`` are the patches that a kernel sees, ``(*lead, N, T, d_in)``.

    ``T`` positions share most of their inputs: ``a`` is larger than the layer's input by the size of the kernel. It is
    written down when somebody reads it; per-example gradients, their squares and products with vectors are
    convolutions, and the input factor takes it in pieces.

    Args:
        patches: the input and the geometry.
        g, mask, outputs, places, total: as for :class:`Rows`.
    """

    def __init__(
        self,
        patches: Patches,
        g: Tensor,
        mask: Tensor | None = None,
        outputs: Tensor | None = None,
        places: Tensor | None = None,
        total: Total | None = None,
    ) -> None:
        vars(self).update(patches=patches, g=g, mask=mask, outputs=outputs, places=places, total=total)

    patches: Patches

    @cached_property
    def a(self) -> Tensor:
        """The patches, ``(*lead, N, T, d_in)``."""
        return self.patches.matrix()

    @property
    def count(self) -> int:
        """Number of examples ``N``."""
        return self.patches.count

    @property
    def shape(self) -> Shape:
        """Block shape ``(*lead, d_out, d_in)``."""
        return (*self.patches.lead, self.g.shape[-1], self.patches.d_in)

    def changed(self, **changes: Any) -> Rows:
        """See :meth:`Rows.changed`."""
        if "a" in changes:
            return Rows(**({field.name: getattr(self, field.name) for field in fields(Rows)} | changes))
        kept = {name: getattr(self, name) for name in ("patches", "g", "mask", "outputs", "places", "total")}
        return PatchRows(**(kept | changes))

    def dense(self) -> Tensor:
        """See :meth:`Rows.dense`."""
        if not self._convolves:
            return super().dense()
        rows = self.patches.example_gradients(self.g)
        return rows.movedim(0, 2) if self.patches.lead else rows

    def pieces(self) -> Iterator[Tensor]:
        """See :meth:`Rows.pieces`."""
        if not self._convolves:
            yield from super().pieces()
            return
        for start, stop in self._parts():
            yield self.patches.part(start, stop).example_gradients(self.g[..., start:stop, :, :])

    def squares(self) -> Tensor:
        """See :meth:`Rows.squares`."""
        if not self._convolves:
            return super().squares()
        squares = self.g.new_zeros(self.shape)
        total = None if self.total is None else torch.zeros_like(squares)
        for rows in self.pieces():
            add_squares(rows, squares, total)
        if self.total is not None:
            self.total.value = total
        return squares

    def matvec(self, v: Tensor) -> Tensor:
        """See :meth:`Rows.matvec`."""
        products = (self.g * self.patches.product(v).unsqueeze(-4)).sum((-1, -2))
        return products.reshape(-1, *products.shape[-2:]).sum(0)

    def rmatvec(self, c: Tensor) -> Tensor:
        """See :meth:`Rows.rmatvec`."""
        return self.patches.summed_gradient((self.g * c[..., None, None]).sum(-4))

    def first(self, count: int, factor: float) -> Rows:
        """See :meth:`Rows.first`."""
        mask = None if self.mask is None else self.mask[..., :count, :]
        outputs = None if self.outputs is None else self.outputs[..., :count, :, :]
        return PatchRows(self.patches.part(0, count), self.g[..., :count, :, :] * factor, mask, outputs)

    @property
    def _convolves(self) -> bool:
        """A batched product with the patches is the faster one where they are hardly larger than the result, or no
        larger than the input."""
        return not self.patches.is_point and self.g.shape[-2] > 2 * self.g.shape[-1]


@input_factor.register
def _(rows: PatchRows, sharing: str, diagonal: bool = False) -> Tensor:
    if sharing != "expand" or rows.mask is not None:
        return input_factor.dispatch(Rows)(rows, sharing, diagonal)
    patches = rows.patches
    in_place = None if diagonal else patches.factor_in_place()
    if in_place is not None:
        return in_place
    if not diagonal and pays(patches):
        return second_moment_of_patches(patches)
    per_example = rows.g.shape[-2] * max(1, patches.groups) * patches.d_in
    chunk = max(1, chunk_elements(rows.g) // max(1, per_example))
    total = None
    for start in range(0, max(1, rows.count), chunk):
        flat = patches.part(start, start + chunk).matrix().flatten(-3, -2)
        part = second_moment(flat, flat, diagonal=diagonal)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total
