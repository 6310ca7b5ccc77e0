"""Memory-aware synapses: the importance of a weight is how much the outputs depend on it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from vogn.continual.heads import evaluating, selected_head
from vogn.continual.importance import ImportancePenalty

EXAMPLES_AT_A_TIME = 64


class MemoryAwareSynapses(ImportancePenalty):
    """``importance_j += sum_n | d ||f(x_n)||^2 / d theta_j |``: no labels, one gradient per example.

    The paper takes the mean over the examples; the sum gives larger tasks more weight, as Bayes' rule does.

    Args:
        model, likelihood, strength, optimizer: see :class:`ImportancePenalty`; ``lambda`` in the paper.

    Source: Aljundi et al. (2018), "Memory Aware Synapses: Learning what (not) to forget".
    """

    def measure(self, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """See :class:`MemoryAwareSynapses`."""
        weights = self.copy_of_weights()
        total = {name: torch.zeros_like(p) for name, p in weights.items()}

        def size(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
            outputs: Tensor = functional_call(self.model, parameters, (x.unsqueeze(0),))
            return outputs.square().sum()

        with evaluating(self.model, selected_head(self.model)):
            for inputs, _ in batches:
                for part in inputs.split(EXAMPLES_AT_A_TIME):
                    slopes = vmap(grad(size), in_dims=(None, 0))(weights, part)
                    for name, slope in slopes.items():
                        total[name] += slope.detach().abs().sum(0)
        return total
