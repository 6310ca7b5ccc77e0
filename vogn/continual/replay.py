"""Replay of stored examples; with all of them, joint training: the upper bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vogn.continual.heads import select_head, selected_head
from vogn.continual.memory import Memory, at_random, check_size, memories_from_state
from vogn.continual.method import ContinualMethod, Loader, OptimizerFactory
from vogn.likelihoods import Likelihood

_BATCH_STREAM = 0x8EB1


class Replay(ContinualMethod):
    """``penalty = sum_s (N_s / |b_s|) sum_(n in b_s) loss_n`` with a batch ``b_s`` of the memory of every earlier task.

    An unbiased estimate, over the choice of the memory and of the batch, of the summed loss of all earlier data. The
    model runs in the mode that training has put it into.

    Args:
        model, likelihood, optimizer: see :class:`ContinualMethod`.
        memory: examples kept of each task, chosen at random, >= 1; ``None`` keeps all, which is joint training.
        batch_size: examples per step, shared by the earlier tasks (at least one each), >= 1.
        seed: of all choices.

    Raises:
        ValueError: if a number is out of range.

    Source: Robins (1995), "Catastrophic Forgetting, Rehearsal and Pseudorehearsal".
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        memory: int | None = 100,
        batch_size: int = 64,
        seed: int = 0,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(model, likelihood, optimizer=optimizer)
        check_size(memory)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} must be at least 1")
        self.memory, self.batch_size, self.seed = memory, batch_size, seed
        self.memories: list[Memory] = []
        self._steps = 0

    def penalty(self) -> Tensor:
        """The estimate of the present step: the same until the next one."""
        total, head = self.zero(), selected_head(self.model)
        share = max(1, self.batch_size // max(1, len(self.memories)))
        try:
            for number, memory in enumerate(self.memories):
                chosen = self._batch(memory, share, number)
                select_head(self.model, memory.head)
                loss = self.likelihood(self.model(memory.inputs[chosen]), memory.targets[chosen])
                total = total + memory.examples * loss
        finally:
            select_head(self.model, head)
        return total

    def after_step(self) -> None:
        """The next batch is another one."""
        self._steps += 1

    def after_task(self, loader: Loader) -> None:
        """Keep examples of the task."""
        seed = self.seed + len(self.memories)
        self.memories.append(at_random(self.batches(loader), self.memory, seed, selected_head(self.model)))

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`ContinualMethod.state_dict`."""
        return super().state_dict() | {"steps": self._steps, "memories": [m.state() for m in self.memories]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ContinualMethod.load_state_dict`."""
        super().load_state_dict(state)
        self._steps, self.memories = int(state["steps"]), memories_from_state(state["memories"])

    def _batch(self, memory: Memory, size: int, number: int) -> Tensor:
        if size >= len(memory):
            return torch.arange(len(memory), device=memory.inputs.device)
        generator = np.random.default_rng([_BATCH_STREAM, self.seed, self._steps, number])
        return torch.from_numpy(generator.choice(len(memory), size, replace=False)).to(memory.inputs.device)
