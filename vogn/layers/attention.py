"""Multi-head attention from tapped projections, and the sequence modules built on it.

The three projections of query, key and value are independent linear maps: one block with leading dimension 3 if they
are packed in one weight, one block each otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vogn.layers.base import SEQUENCES, Axes, ExplicitRule, SiteRule, Tap, child_axes, register_explicit
from vogn.layers.pairs import row_dtype, with_ones
from vogn.layers.sites import LinearSite, examples_first
from vogn.linalg.rows import Rows


@dataclass(frozen=True)
class PackedProjection(LinearSite):
    """The projections of query, key and value in one weight ``(3 E, E)``.

    Self-attention: ``saved = (x,)``, gradient ``(K, N, L, 3 E)``. Otherwise ``saved = (query, key, value)`` and the
    gradient ``(K, N, L + 2 S, E)``: their outputs one after the other.
    """

    parts: int = 3

    def rows(
        self, module: nn.Module, attributes: tuple[str, ...], saved: tuple[Tensor, ...], grad_output: Tensor
    ) -> Rows:
        """See :meth:`LayerRule.rows`."""
        if len(saved) == 1:
            return super().rows(module, attributes, saved, grad_output)
        dtype = row_dtype(grad_output, *saved)
        lengths = [x.shape[1] for x in saved]
        pieces = grad_output.to(dtype).split(lengths, 2)
        if self.weight not in attributes:
            total = torch.stack([g.sum(2, keepdim=True) for g in pieces])
            return Rows(total.new_ones(()).expand(3, total.shape[2], 1, 1), total)
        inputs = [with_ones(x.to(dtype)) if self.bias in attributes else x.to(dtype) for x in saved]
        length = max(lengths)
        a = torch.stack([F.pad(x, (0, 0, 0, length - x.shape[1])) for x in inputs])
        g = torch.stack([F.pad(g, (0, 0, 0, length - g.shape[2])) for g in pieces])
        if min(lengths) == length:
            return Rows(a, g)
        mask = torch.arange(length, device=a.device) < torch.tensor(lengths, device=a.device).unsqueeze(1)
        return Rows(a, g, mask=mask.unsqueeze(1).expand(3, a.shape[1], length))


@register_explicit(nn.MultiheadAttention)
class AttentionRule(ExplicitRule):
    """``nn.MultiheadAttention`` in all its forms except nested tensors. The dropout draws the same random numbers."""

    def sites(self, module: nn.Module) -> Mapping[str, SiteRule]:
        """See :meth:`ExplicitRule.sites`."""
        assert isinstance(module, nn.MultiheadAttention)
        sites: dict[str, SiteRule] = {"out": LinearSite("out_proj.weight", "out_proj.bias")}
        if module.in_proj_weight is not None:
            sites["in"] = PackedProjection("in_proj_weight", "in_proj_bias")
        else:
            sites |= {name: LinearSite(f"{name}_proj_weight", None) for name in "qkv"}
            sites["in"] = LinearSite(None, "in_proj_bias", parts=3)
        return sites | {name: LinearSite(None, name) for name in ("bias_k", "bias_v")}

    def forward(
        self,
        module: nn.Module,
        tap: Tap,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`ExplicitRule.forward`; the arguments are those of ``nn.MultiheadAttention.forward``.

        Raises:
            ValueError: if shapes do not fit together.
        """
        assert isinstance(module, nn.MultiheadAttention)
        batched = query.ndim == 3
        _check_inputs(query, key, value, key_padding_mask)
        axes: Axes = "batch_first" if module.batch_first else "time_first"
        itself = query is key and key is value
        x, y, z = (examples_first(t, axes) for t in (query, key, value))
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True is a hint about attn_mask, which is missing; give the causal mask too")
        hinted = is_causal and key_padding_mask is None and not need_weights
        shape = (x.shape[0], module.num_heads, x.shape[1], y.shape[1])
        mask = _additive(None if hinted else attn_mask, key_padding_mask, shape, x.dtype)
        q, k, v = (_heads(t, module) for t in _extended(module, tap, *_projected(module, tap, x, y, z, itself)))
        if module.add_zero_attn:
            k, v = F.pad(k, (0, 0, 0, 1)), F.pad(v, (0, 0, 0, 1))
        if mask is not None:
            mask = F.pad(mask, (0, k.shape[2] - mask.shape[3]))
        context, weights = _attended(module, q, k, v, mask, need_weights=need_weights, is_causal=hinted)
        joined = context.transpose(1, 2).flatten(2)
        output = F.linear(joined, module.out_proj.weight, module.out_proj.bias)
        tap("out", output)(joined)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if module.batch_first else output.transpose(0, 1), weights


def _check_inputs(query: Tensor, key: Tensor, value: Tensor, padding: Tensor | None) -> None:
    """The numbers of dimensions agree."""
    if query.is_nested or key.is_nested or value.is_nested:
        raise ValueError(
            "nn.MultiheadAttention takes nested tensors only in its inference fast path, not while curvature is "
            "captured; pad the sequences and pass key_padding_mask"
        )
    if query.ndim not in (2, 3) or key.ndim != query.ndim or value.ndim != query.ndim:
        raise ValueError(
            f"query, key and value must all have 3 dimensions, or all 2 (unbatched); got shapes {tuple(query.shape)}, "
            f"{tuple(key.shape)} and {tuple(value.shape)}"
        )
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"key {tuple(key.shape)} and value {tuple(value.shape)} must agree but for the last dimension")
    if padding is not None and padding.ndim != query.ndim - 1:
        raise ValueError(f"key_padding_mask must have {query.ndim - 1} dimensions, got shape {tuple(padding.shape)}")


def _projected(
    module: nn.MultiheadAttention, tap: Tap, x: Tensor, y: Tensor, z: Tensor, itself: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Projected query, key and value, ``(N, L, E)`` and ``(N, S, E)``."""
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if weight is None:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        q, k, v = (F.linear(t, w) for t, w in zip((x, y, z), weights, strict=True))
        for name, t, output in zip("qkv", (x, y, z), (q, k, v), strict=True):
            tap(name, output)(t)
        if bias is None:
            return q, k, v
        # one copy of the bias per example: the gradient of a copy is the example's
        copies = bias.expand(x.shape[0], 1, -1)
        tap("in", copies)()
        b_q, b_k, b_v = copies.chunk(3, -1)
        return q + b_q, k + b_k, v + b_v
    if itself:
        packed = F.linear(x, weight, bias)
        tap("in", packed)(x)
        q, k, v = packed.chunk(3, -1)
        return q, k, v
    weights = weight.chunk(3)
    biases = (None, None, None) if bias is None else bias.chunk(3)
    outputs = [F.linear(t, w, b) for t, w, b in zip((x, y, z), weights, biases, strict=True)]
    together = torch.cat(outputs, 1)  # one place in the graph for the gradients of all three
    tap("in", together)(x, y, z)
    q, k, v = together.split([output.shape[1] for output in outputs], 1)
    return q, k, v


def _extended(
    module: nn.MultiheadAttention, tap: Tap, q: Tensor, k: Tensor, v: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Key and value with their learnt last position, if there is one."""
    if module.bias_k is None or module.bias_v is None:
        return q, k, v
    last_k, last_v = (bias.expand(q.shape[0], 1, -1) for bias in (module.bias_k, module.bias_v))
    tap("bias_k", last_k)()
    tap("bias_v", last_v)()
    return q, torch.cat([k, last_k], 1), torch.cat([v, last_v], 1)


def _heads(x: Tensor, module: nn.MultiheadAttention) -> Tensor:
    """``(N, T, E)`` as ``(N, heads, T, E / heads)``."""
    return x.unflatten(-1, (module.num_heads, -1)).transpose(1, 2)


def _additive(
    attention: Tensor | None, padding: Tensor | None, shape: tuple[int, int, int, int], dtype: torch.dtype
) -> Tensor | None:
    """Both masks as one that is added to the scores, broadcast to ``shape = (N, heads, L, S)``."""
    n, heads, length, source = shape
    total: Tensor | None = None
    if attention is not None:
        if attention.shape not in ((length, source), (n * heads, length, source)):
            raise ValueError(
                f"attn_mask must have shape ({length}, {source}) or ({n * heads}, {length}, {source}), got "
                f"{tuple(attention.shape)}"
            )
        scores = _as_scores(attention, dtype)
        total = scores.expand(1, 1, -1, -1) if scores.ndim == 2 else scores.unflatten(0, (n, heads))
    if padding is not None:
        if padding.shape not in ((n, source), (source,)):
            raise ValueError(f"key_padding_mask must have shape ({n}, {source}), got {tuple(padding.shape)}")
        scores = _as_scores(padding, dtype).reshape(n, 1, 1, source)
        total = scores if total is None else total + scores
    return total


def _as_scores(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a boolean mask is ``True``; a floating mask as it is."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)


def _attended(
    module: nn.MultiheadAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    *,
    need_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """Values averaged by attention ``(N, heads, L, d)``, and the attention ``(N, heads, L, S)`` if it is asked for."""
    p = module.dropout if module.training else 0.0
    if not need_weights:
        return F.scaled_dot_product_attention(q, k, v, mask, p, is_causal), None
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    weights = torch.softmax(scores if mask is None else scores + mask, -1)
    if p > 0.0:
        weights = F.dropout(weights.flatten(0, 1), p).view_as(weights)
    return weights @ v, weights


def _axes(attention: Any) -> Axes:
    return "batch_first" if attention.batch_first else "time_first"


def _layer_axes(module: Any) -> Mapping[str, Axes]:
    """Inside an encoder or decoder layer."""
    return dict.fromkeys(("linear1", "linear2", "norm1", "norm2", "norm3"), _axes(module.self_attn))


def _stack_axes(module: Any) -> Mapping[str, Axes]:
    """The last norm of a stack of layers, if the layers are known."""
    known = {kind for layer in module.layers for kind in child_axes(layer).values()}
    return dict.fromkeys(("norm",), known.pop()) if len(known) == 1 else {}


SEQUENCES |= {
    nn.TransformerEncoderLayer: _layer_axes,
    nn.TransformerDecoderLayer: _layer_axes,
    nn.TransformerEncoder: _stack_axes,
    nn.TransformerDecoder: _stack_axes,
}
