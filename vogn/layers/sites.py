"""Linear maps inside explicit forwards, and inputs whose first dimension is not the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vogn.layers.base import Axes, SiteRule
from vogn.layers.pairs import bias_rows, matrix_layout, row_dtype, with_ones
from vogn.linalg.layout import Layout
from vogn.linalg.rows import Rows
from vogn.types import Shape


def examples_first(x: Tensor, axes: Axes, start: int = 0) -> Tensor:
    """``x`` with the examples in dimension ``start``; ``start`` dimensions stand in front of those of a layer."""
    if axes == "examples":
        return x
    if x.ndim == start + 2:
        return x.unsqueeze(start)
    return x.transpose(start, start + 1) if axes == "time_first" else x


@dataclass(frozen=True)
class LinearSite(SiteRule):
    """``F.linear(a, weight, bias)`` with ``saved = (a,)`` or ``(a, mask)`` and a gradient ``(K, N, T, d_out)``.

    Args:
        weight: path of the weight, ``(d_out, d_in)``; ``None`` for a bias alone, which needs no ``saved``.
        bias: path of the bias.
        parts: number of maps that are stacked in ``d_out`` and become independent sub-blocks.
        axes: see :class:`SiteRule`; ``a`` is ``(N, T, d_in)`` and ``mask`` is ``(N, T)`` whatever it says.
    """

    weight: str | None
    bias: str | None
    parts: int = 1
    axes: Axes = "batch_first"

    @property
    def parameters(self) -> tuple[str, ...]:  # type: ignore[override]
        """See :class:`SiteRule`."""
        return tuple(path for path in (self.weight, self.bias) if path is not None)

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`."""
        local = {"weight": self.weight, "bias": self.bias}
        attributes = {attribute: path for attribute, path in local.items() if path is not None and path in names}
        known = {attribute: shapes[path] for attribute, path in attributes.items()}
        outputs = known["weight"][0] if "weight" in known else math.prod(known["bias"])
        inputs = known["weight"][1] if "weight" in known else 0
        lead = (self.parts,) if self.parts > 1 else ()
        return matrix_layout(
            {attribute: names[path] for attribute, path in attributes.items()},
            known,
            (*lead, outputs // self.parts, inputs),
        )

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        g = grad_output.to(row_dtype(grad_output, *saved[:1]))
        if self.parts > 1:
            g = g.unflatten(-1, (self.parts, -1)).movedim(-2, 0)
        if self.weight not in attributes:
            return bias_rows(g)
        a, *mask = saved
        a = a.to(g.dtype)
        a = with_ones(a) if self.bias in attributes else a
        return Rows(a.expand(self.parts, *a.shape) if self.parts > 1 else a, g, mask=mask[0] if mask else None)
