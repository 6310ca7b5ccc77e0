"""The outputs' variance where only the weights of the last layer are uncertain: its features are all that is needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from vogn.linalg.layout import MatrixLayout
from vogn.posterior import GaussianPosterior
from vogn.predict.evaluation import calls_of, concatenated
from vogn.predict.inputs import Batches

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
    if type(layer) is not nn.Linear or _is_shared(model, layer):
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


def _is_shared(model: nn.Module, layer: nn.Linear) -> bool:
    """Whether another part of the network uses the layer's weights too."""
    everywhere = [id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False)]
    return any(everywhere.count(id(parameter)) > 1 for parameter in layer.parameters())


@dataclass(frozen=True)
class Head:
    """A network that ends in one linear layer, at given weights of all others.

    Args:
        path: name of the layer.
        features: ``(N, d_in)``, its inputs.
        centre: ``(N, K)``, its outputs at the mean weights.
    """

    path: str
    features: Tensor
    centre: Tensor

    def outputs(self, displacement: Mapping[str, Tensor]) -> Tensor:
        """``(N, K)`` where the layer's parameters are displaced; ``{name: shape}``."""
        weight, bias = (displacement.get(f"{self.path}.{name}" if self.path else name) for name in ("weight", "bias"))
        found = self.centre if weight is None else self.centre + linear(self.features, weight)
        return found if bias is None else found + bias


def head_of(
    model: nn.Module, posterior: Any, mean: Mapping[str, Tensor], statistics: Mapping[str, Tensor], batches: Batches
) -> Head | None:
    """The last layer's features, by one pass over the batches, if that layer holds all that is uncertain.

    Args:
        model, posterior: see :func:`last_layer_of`.
        mean: weights, ``{name: shape}``.
        statistics: batch norm statistics.
        batches: arguments of the model's calls.
    """
    short = last_layer_of(model, posterior)
    if short is None:
        return None
    layer, features, centre = short[0], [], []
    for call in calls_of(model, statistics, batches):
        with features_of(layer) as seen:
            whole = call.outputs(dict(mean))
        if not is_last(seen, whole):
            return None
        features.append(seen[0][0])
        centre.append(whole)
    path = next(name for name, module in model.named_modules() if module is layer)
    return Head(path, concatenated(features), concatenated(centre))


def is_last(seen: list[tuple[Tensor, Tensor]], outputs: Tensor) -> bool:
    """The layer was called once, on one vector per example, and what it returned is what the network returned."""
    return len(seen) == 1 and seen[0][1].ndim == 2 and torch.equal(seen[0][1], outputs)


@contextmanager
def features_of(layer: nn.Linear) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """The inputs and outputs of the layer's calls inside; what becomes of its outputs, in place too, comes later."""
    seen: list[tuple[Tensor, Tensor]] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        seen.append(((args[0] if args else kwargs["input"]).detach().clone(), output.detach().clone()))

    handle = layer.register_forward_hook(note, prepend=True, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
