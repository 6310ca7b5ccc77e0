"""Function-space L2: the network shall still say what it said about stored inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.continual.heads import evaluating, selected_head
from vogn.continual.memory import Memory, at_random, check_size, memories_from_state
from vogn.continual.method import ContinualMethod, Loader, OptimizerFactory
from vogn.continual.ranges import check_not_negative
from vogn.likelihoods import Likelihood

_EPSILON = 1e-12
"""Under the root: the norm has no gradient at zero."""


class FunctionDistance(ContinualMethod):
    """``penalty = strength N mean_x || p(x) - p_old(x) ||``, the mean over the stored inputs of all earlier tasks.

    ``p`` are class probabilities, ``N`` the examples of the present task: with its mean loss the strength stands beside
    the loss as in the paper. The network runs in evaluation mode on stored inputs.

    Args:
        model, likelihood, optimizer: see :class:`ContinualMethod`; the outputs are logits of classes.
        memory: inputs kept of each task, chosen at random, >= 1.
        strength: >= 0.
        seed: of the choice.

    Raises:
        ValueError: if a number is out of range.

    Source: Benjamin, Rolnick, Kording (2019), "Measuring and Regularizing Networks in Function Space".
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        memory: int = 100,
        strength: float = 1.0,
        seed: int = 0,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(model, likelihood, optimizer=optimizer)
        check_size(memory)
        check_not_negative(strength=strength)
        self.memory, self.strength, self.seed = memory, strength, seed
        self.memories: list[Memory] = []

    def penalty(self) -> Tensor:
        """See :class:`FunctionDistance`."""
        distances = []
        for memory in self.memories:
            with evaluating(self.model, memory.head):
                moved = self.model(memory.inputs).softmax(-1) - memory.outputs
            distances.append((moved.square().sum(-1) + _EPSILON).sqrt())
        if not distances:
            return self.zero()
        return self.strength * self.examples * torch.cat(distances).mean()

    def after_task(self, loader: Loader) -> None:
        """Keep inputs of the task, and the probabilities that the network gives them now."""
        head = selected_head(self.model)
        memory = at_random(self.batches(loader), self.memory, self.seed + len(self.memories), head)
        with torch.no_grad(), evaluating(self.model, head):
            memory.outputs = self.model(memory.inputs).softmax(-1)
        self.memories.append(memory)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`ContinualMethod.state_dict`."""
        return super().state_dict() | {"memories": [memory.state() for memory in self.memories]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ContinualMethod.load_state_dict`."""
        super().load_state_dict(state)
        self.memories = memories_from_state(state["memories"])
