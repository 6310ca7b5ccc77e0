"""Embeddings: a linear map whose inputs are one-hot, kept as indices."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from vogn.errors import UnsupportedObservationError
from vogn.layers.base import LayerRule, register_layer
from vogn.layers.pairs import row_dtype
from vogn.linalg.layout import Layout, MatrixLayout
from vogn.linalg.rows import IndexedRows
from vogn.types import Shape


@register_layer(nn.Embedding)
class EmbeddingRule(LayerRule):
    """``nn.Embedding`` on indices ``(N, *middle)``; block ``(embedding_dim, num_embeddings)``.

    Positions that hold ``padding_idx`` get no gradient and are masked.
    """

    def layout(self, module: nn.Module, names: Mapping[str, str], shapes: Mapping[str, Shape]) -> Layout:
        """See :meth:`LayerRule.layout`.

        Raises:
            UnsupportedObservationError: for ``sparse=True``, ``scale_grad_by_freq=True`` or a ``max_norm``.
        """
        assert isinstance(module, nn.Embedding)
        name = names["weight"]
        if module.sparse:
            raise UnsupportedObservationError(
                f"block {name!r}: nn.Embedding(sparse=True) yields sparse gradients, but only dense ones are "
                "supported; build the layer with sparse=False"
            )
        if module.scale_grad_by_freq:
            raise UnsupportedObservationError(
                f"block {name!r}: nn.Embedding(scale_grad_by_freq=True) rescales its gradient by batch counts, so it "
                "is no longer the gradient of the loss; build the layer with scale_grad_by_freq=False"
            )
        if module.max_norm is not None:
            raise UnsupportedObservationError(
                f"block {name!r}: nn.Embedding(max_norm={module.max_norm}) overwrites its weight in forward, which a "
                "restored mean would undo; build the layer with max_norm=None and use a prior (weight_decay) instead"
            )
        return MatrixLayout(
            (name,), (tuple(shapes["weight"]),), (module.embedding_dim, module.num_embeddings), permute=(1, 0)
        )

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
        if module.padding_idx is not None:
            mask = index != module.padding_idx
            g = g * mask.unsqueeze(-1)
        return IndexedRows(index=index, g=g, size=module.num_embeddings, mask=mask)
