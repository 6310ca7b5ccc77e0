"""Bags of embeddings: every example is the sum, mean or maximum of the entries of its bag."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.errors import UnsupportedObservationError
from vogn.layers.base import LayerRule, register_layer
from vogn.layers.embedding import table_layout
from vogn.layers.pairs import row_dtype
from vogn.linalg.layout import Layout
from vogn.linalg.rows import IndexedRows
from vogn.types import Shape


@register_layer(nn.EmbeddingBag)
class EmbeddingBagRule(LayerRule):
    """``nn.EmbeddingBag`` in the modes sum, mean and max; block ``(embedding_dim, num_embeddings)``.

    A bag is an example and its entries are the positions; bags of different lengths are padded and masked, as are
    entries that hold ``padding_idx``. The output gradient of a position is that of its bag times what the entry counts
    for: its ``per_sample_weights``, one over the length of the bag (mean), or the output dimensions in which it is the
    maximum. ``per_sample_weights`` may come from other layers: those see the gradient that PyTorch sends there.
    """

    ATTRIBUTES = ("weight",)
    LOOKS_UP = True

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`.

        Raises:
            UnsupportedObservationError: for ``sparse=True``, ``scale_grad_by_freq=True`` or a ``max_norm``.
        """
        assert isinstance(module, nn.EmbeddingBag)
        if module.scale_grad_by_freq:
            raise UnsupportedObservationError(
                f"block {names['weight']!r}: nn.EmbeddingBag(scale_grad_by_freq=True) divides gradients by the counts "
                "of other entries than their own on some devices, so no rows sum to them; build the layer with "
                "scale_grad_by_freq=False, or use nn.Embedding(scale_grad_by_freq=True) and reduce its output"
            )
        return table_layout(module, names, shapes)

    def saved(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> tuple[Tensor, ...]:
        """Entries and their mask, ``(N, T)``, and what they count for, ``(N, T)`` or ``(N, T, d)`` for the maximum."""
        assert isinstance(module, nn.EmbeddingBag)
        flat, offsets, weights = (*inputs, None, None)[:3]
        flat, offsets, weights, lengths = _flat_bags(module, flat.detach(), offsets, weights)
        positions = torch.arange(int(lengths.max()) if len(lengths) else 0, device=flat.device)
        inside = positions < lengths.unsqueeze(1)
        place = torch.where(inside, offsets.unsqueeze(1) + positions, 0)
        index = flat[place] if flat.numel() else place
        mask = inside if module.padding_idx is None else inside & (index != module.padding_idx)
        if module.mode == "max":
            return index, mask, _wins(module, flat, offsets, index, mask)
        factor = mask.to(row_dtype(output))
        if module.mode == "mean":
            factor = factor / factor.sum(1, keepdim=True).clamp_min(1.0)
        if weights is not None:
            factor = factor * weights.detach().to(factor.dtype)[place]
        return index, mask, factor

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> IndexedRows:
        """See :meth:`LayerRule.rows`."""
        assert isinstance(module, nn.EmbeddingBag)
        index, mask, factor = saved
        dtype = row_dtype(grad_output)
        per_dimension = factor if factor.ndim == 3 else factor.unsqueeze(-1)
        g = grad_output.to(dtype).unsqueeze(2) * per_dimension.to(dtype)
        return IndexedRows(index=index, g=g, size=module.num_embeddings, mask=mask)


def _flat_bags(
    module: nn.EmbeddingBag, entries: Tensor, offsets: Tensor | None, weights: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """Every form of input as ``(entries, first entry of each bag, weights, length of each bag)``, all flat."""
    if entries.is_nested:
        offsets, entries = entries.offsets(), entries.values()  # type: ignore[attr-defined]
        weights = None if weights is None else weights.values()
        return entries, offsets[:-1], weights, offsets.diff()
    if entries.ndim == 2:
        count, length = entries.shape
        lengths = torch.full((count,), length, device=entries.device)
        starts = torch.arange(count, device=entries.device) * length
        return entries.flatten(), starts, None if weights is None else weights.flatten(), lengths
    assert offsets is not None
    ends = offsets[1:] if module.include_last_offset else torch.cat([offsets[1:], offsets.new_tensor([len(entries)])])
    starts = offsets[: len(ends)]
    return entries, starts, weights, ends - starts


def _wins(module: nn.EmbeddingBag, flat: Tensor, offsets: Tensor, index: Tensor, mask: Tensor) -> Tensor:
    """Where a position holds the maximum of its bag, ``(N, T, d)``: the first position of the entry that forward chose.

    Forward is asked, because which of several equal entries gets the gradient is its choice.
    """
    weight, padding = module.weight.detach(), module.padding_idx
    chosen = torch.embedding_bag(weight, flat, offsets, False, 2, False, None, False, padding)[3]
    equal = (index.unsqueeze(-1) == chosen.unsqueeze(1)) & mask.unsqueeze(-1)
    return equal & (equal.cumsum(1) == 1)
