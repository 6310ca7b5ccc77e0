"""Monte Carlo dropout: uncertainty from dropout that stays on at prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from vogn.linalg.noise import generator
from vogn.posterior.ensemble import KnownLikelihood, Point, Weights


class MCDropout(Point):
    """Fixed weights, and every draw with dropout masks of its own.

    A mask is no weight: it depends on the layer's input. What is drawn is therefore said by :meth:`drawing`, which
    :func:`vogn.predict` enters around the forward passes of a draw; :meth:`sample` returns the weights. Predictions
    with ``method="mean"`` have dropout off.

    Args:
        weights: the trained model, or ``{name: shape}``.
        likelihood: see :class:`Ensemble`.

    Raises:
        ValueError: if a model without dropout is given.

    Example:
        >>> import torch, vogn
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3))
        >>> dropout = vogn.MCDropout(model, likelihood=vogn.likelihoods.Categorical())
        >>> tuple(vogn.predict(model, dropout, torch.zeros(4, 2), samples=6).samples.shape)
        (6, 4, 3)

    Source: Gal and Ghahramani (2016), "Dropout as a Bayesian Approximation".
    """

    FORMAT: ClassVar[str] = "vogn.posterior.mc_dropout"

    def __init__(self, weights: Weights, *, likelihood: KnownLikelihood = None) -> None:
        if isinstance(weights, nn.Module):
            _dropout_layers(weights)
        super().__init__(weights, likelihood=likelihood)

    @contextmanager
    def drawing(self, model: nn.Module, *, seed: int, draw: int) -> Iterator[None]:
        """Dropout is on inside, with the masks of a draw; afterwards as before.

        The fused transformer layers of evaluation mode are off inside: they have no dropout.

        Args:
            model: in evaluation mode, inside a context that restores torch's random states.
            seed, draw: fix the masks, together with the inputs and how they are cut into batches.

        Raises:
            ValueError: if the model has no dropout.
        """
        layers = _dropout_layers(model)
        flags = [layer.training for layer in layers]
        number = int(torch.randint(1 << 62, (), generator=generator(seed=seed, stream="dropout", step=0, sample=draw)))
        torch.manual_seed(number)
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            for layer in layers:
                layer.training = True
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for layer, flag in zip(layers, flags, strict=True):
                layer.training = flag

    def functional_variance(self, jacobian: Mapping[str, Tensor]) -> Tensor:
        """Masks have no Jacobian.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("dropout masks have no covariance over weights; use predict(method='mc')")


def _dropout_layers(model: nn.Module) -> list[_DropoutNd]:
    """The model's dropout layers that do something.

    Raises:
        ValueError: if there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, _DropoutNd) and module.p > 0.0]
    if not layers:
        raise ValueError(
            f"the model ({type(model).__name__}) has no dropout layer with p > 0 (torch.nn.Dropout and its kin): every "
            "draw would be the same"
        )
    return layers
