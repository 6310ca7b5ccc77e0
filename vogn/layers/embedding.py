"""Embeddings: a linear map whose inputs are one-hot, kept as indices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor, nn

from vogn.errors import UnsupportedObservationError
from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import matrix_layout, row_dtype
from vogn.linalg.layout import Layout, MatrixLayout
from vogn.linalg.rows import IndexedRows
from vogn.types import Shape


def table_layout(
    module: nn.Embedding | nn.EmbeddingBag, names: Mapping[str, str], shapes: Mapping[str, Shape]
) -> MatrixLayout:
    """A look-up table ``(num_embeddings, embedding_dim)`` as a block ``(embedding_dim, num_embeddings)``; the entry of
    ``padding_idx`` is a constant.

    Raises:
        UnsupportedObservationError: for ``sparse=True`` or a ``max_norm``.
    """
    kind, name = f"nn.{'EmbeddingBag' if isinstance(module, nn.EmbeddingBag) else 'Embedding'}", names["weight"]
    if module.sparse:
        raise UnsupportedObservationError(
            f"block {name!r}: {kind}(sparse=True) yields sparse gradients, but only dense ones are "
            "supported; build the layer with sparse=False"
        )
    if module.max_norm is not None:
        raise UnsupportedObservationError(
            f"block {name!r}: {kind}(max_norm={module.max_norm}) overwrites its weight in forward, which a "
            "restored mean would undo; build the layer with max_norm=None and use a prior (weight_decay) instead"
        )
    layout = matrix_layout(names, shapes, (module.embedding_dim, module.num_embeddings), permute=(1, 0))
    return replace(layout, constant=module.padding_idx)


def inverse_frequency(index: Tensor, size: int, like: Tensor) -> Tensor:
    """One over the number of times that each entry of ``index`` occurs in all of ``index``, shaped like ``index``."""
    return index.flatten().bincount(minlength=size).to(like.dtype)[index].reciprocal()


@register_layer(nn.Embedding)
class EmbeddingRule(LayerRule):
    """``nn.Embedding`` on indices ``(N, *middle)``; block ``(embedding_dim, num_embeddings)``.

    Positions that hold ``padding_idx`` get no gradient and are masked. With ``scale_grad_by_freq=True`` PyTorch divides
    the gradient of an entry by the number of times it occurs in the batch. The rows are divided alike, so they still
    sum to the batch gradient; a row is then no gradient of its example alone: it depends on the rest of the batch, and
    the curvature of a frequent entry falls with the square of its count.
    """

    ATTRIBUTES = ("weight",)
    LOOKS_UP = True

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`.

        Raises:
            UnsupportedObservationError: for ``sparse=True`` or a ``max_norm``.
        """
        assert isinstance(module, nn.Embedding)
        return table_layout(module, names, shapes)

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> IndexedRows:
        """See :meth:`LayerRule.rows`."""
        assert isinstance(module, nn.Embedding)
        (index,) = saved
        if index.ndim == 0:
            index, grad_output = index.unsqueeze(0), grad_output.unsqueeze(1)
        index = index.unsqueeze(1) if index.ndim == 1 else index.flatten(1)
        g = grad_output.to(row_dtype(grad_output)).reshape(-1, *index.shape, module.embedding_dim)
        mask = None
        if module.scale_grad_by_freq:
            g = g * inverse_frequency(index, module.num_embeddings, g).unsqueeze(-1)
        if module.padding_idx is not None:
            mask = index != module.padding_idx
            g = g * mask.unsqueeze(-1)
        return IndexedRows(index=index, g=g, size=module.num_embeddings, mask=mask)
