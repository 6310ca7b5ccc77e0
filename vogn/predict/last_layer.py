"""The outputs' variance where only the weights of the last layer are uncertain: its features are all that is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vogn.linalg.layout import MatrixLayout
from vogn.posterior import GaussianPosterior

VarianceOf = Callable[[Tensor, bool], Tensor]
"""(features ``(B, d_in)``, only variances?) to ``(B, K, K)`` or ``(B, K)``."""


def last_layer_of(model: nn.Module, posterior: Any) -> tuple[nn.Linear, VarianceOf] | None:
    """The linear layer that holds all uncertain weights, and the variance of its outputs; ``None`` if there is none.

    Args:
        model: whose modules are looked through.
        posterior: only a :class:`GaussianPosterior` of one layer, as a matrix with or without its bias as the last
            column, or with the bias as a block of its own, has this short cut.
    """
    if not isinstance(posterior, GaussianPosterior) or not posterior.sampled_blocks:
        return None
    names = {name for block in posterior.sampled_blocks for name in block.layout.names}
    paths = {name.rpartition(".")[0] for name in names}
    layer = dict(model.named_modules()).get(next(iter(paths))) if len(paths) == 1 else None
    if type(layer) is not nn.Linear:
        return None
    matrices = [block for block in posterior.sampled_blocks if isinstance(block.layout, MatrixLayout)]
    weight = next((block for block in matrices if block.layout.names[0].rpartition(".")[2] == "weight"), None)
    if weight is None or len(weight.layout.block_shape) != 2:
        return None
    biases = [block for block in posterior.sampled_blocks if block is not weight]

    def variance_of(features: Tensor, diagonal: bool) -> Tensor:
        dtype = next((t.dtype for t in weight.state.values() if t.is_floating_point()), features.dtype)
        a = features.to(dtype)
        if len(weight.layout.names) == 2:
            a = torch.cat([a, a.new_ones(len(a), 1)], -1)
        total = weight.input_variance(a, diagonal=diagonal)
        for bias in biases:
            if diagonal:
                total = total + bias.variance().flatten()
            else:
                eye = torch.eye(bias.numel, dtype=dtype, device=a.device)
                total = total + bias.covariance_product(eye.view(-1, *bias.layout.block_shape)).reshape(eye.shape)
        return total

    return layer, variance_of


@contextmanager
def features_of(layer: nn.Linear) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The inputs and outputs of the layer's calls inside."""
    seen: list[tuple[Tensor, Tensor]] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append((args[0].detach(), output.detach())))
    try:
        yield seen
    finally:
        handle.remove()
