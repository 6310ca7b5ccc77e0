"""The student."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vogn.distillation.heads import Head
from vogn.predict import Predictive
from vogn.predict.evaluation import device_of, undisturbed
from vogn.predict.inputs import batches_of


class Distilled(nn.Module):
    """A network that predicts what a posterior predictive would, with its uncertainty, in one forward pass.

    Args:
        network: returns the outputs that the head wants, ``(N, K + 1)`` for ``K`` classes, ``(N, 2 K)`` for ``K`` real
            targets.
        head: their meaning.
    """

    def __init__(self, network: nn.Module, head: Head) -> None:
        super().__init__()
        self.network = network
        self.head = head

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """The network's raw outputs."""
        return torch.as_tensor(self.network(*args, **kwargs))

    def predict(self, x: Any, *, batch_size: int = 256) -> Predictive:
        """The predictive distribution at ``x``, in evaluation mode and without gradients.

        Args:
            x: as in :func:`vogn.predict`.
            batch_size: examples per call of the network.

        Returns:
            ``mean``, ``variance``, ``total``, ``aleatoric``, ``epistemic``; there are no samples. Real targets have the
            shape ``(N, K)``.
        """
        with undisturbed(self, seed=0):
            device, parts = device_of(self), []
            for batch in batches_of(x, batch_size):
                args, kwargs = batch.to(device)
                parts.append(self(*args, **kwargs))
            return self.head.predictive(torch.cat(parts))
