"""Knowledge-adaptation priors (K-priors): a divergence of outputs on memorable inputs, and one of weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.continual.heads import evaluating, selected_head
from vogn.continual.memory import Memory, check_size, memories_from_state, most_uncertain
from vogn.continual.method import ContinualMethod, Loader, OptimizerFactory
from vogn.continual.ranges import check_not_negative
from vogn.likelihoods import Categorical, Likelihood


class KPriors(ContinualMethod):
    """``penalty = strength sum_s N_s / M_s sum_(x in M_s) KL(p_old(x) || p(x)) + delta / 2 |theta - theta_old|^2``.

    ``p`` are class probabilities, ``theta_old`` the weights where the latest task ended, ``p_old`` the probabilities
    there, taken anew for all memories after every task. Each memory of ``M_s`` examples stands for the ``N_s`` of its
    task; in the paper the factor ``N_s / M_s`` is left to the strength. Before the first task has ended there is only
    the prior ``N(0, I / delta)``. The network runs in evaluation mode on memories.

    With all inputs in memory and strength 1, a (multi-class) logistic regression that is trained to the end is updated
    exactly: the gradient of the penalty is that of all earlier losses and the prior (the paper's theorem on generalised
    linear models).

    Args:
        model, optimizer: see :class:`ContinualMethod`.
        likelihood: :class:`vogn.likelihoods.Categorical`.
        memory: memorable examples of each task, those of the largest ``sum_k p_k (1 - p_k)`` in every class, >= 1;
            ``None`` keeps all.
        strength: ``tau`` of the function term, >= 0.
        prior_precision: ``delta``, >= 0.

    Raises:
        ValueError: if a number is out of range.
        TypeError: for another likelihood.

    Source: Khan and Swaroop (2021), "Knowledge-Adaptation Priors".
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        memory: int | None = 40,
        strength: float = 1.0,
        prior_precision: float = 1.0,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(model, likelihood, optimizer=optimizer)
        if not isinstance(likelihood, Categorical):
            raise TypeError(f"KPriors compares class probabilities: give Categorical, not {type(likelihood).__name__}")
        check_size(memory)
        check_not_negative(strength=strength, prior_precision=prior_precision)
        self.memory, self.strength, self.prior_precision = memory, strength, prior_precision
        self.memories: list[Memory] = []
        self.centre = {name: torch.zeros_like(p) for name, p in self.copy_of_weights().items()}

    def penalty(self) -> Tensor:
        """See :class:`KPriors`."""
        total = self.zero()
        if self.prior_precision:
            moved = [(p - self.centre[name]).square().sum() for name, p in self.weights().items()]
            total = total + 0.5 * self.prior_precision * torch.stack(moved).sum()
        for memory in self.memories:
            with evaluating(self.model, memory.head):
                log_p = self.model(memory.inputs).log_softmax(-1)
            old: Tensor = memory.outputs  # type: ignore[assignment]
            divergence = (torch.special.xlogy(old, old) - old * log_p).sum()
            total = total + self.strength * memory.examples / len(memory) * divergence
        return total

    def after_task(self, loader: Loader) -> None:
        """Choose memorable examples; take the weights, and the probabilities of all memories, anew."""
        batches, head = self.batches(loader), selected_head(self.model)
        size = sum(len(x) for x, _ in batches) if self.memory is None else self.memory
        with torch.no_grad(), evaluating(self.model, head):
            self.memories.append(most_uncertain(batches, size, head, lambda x: self.model(x).softmax(-1)))
        with torch.no_grad():
            for memory in self.memories:
                with evaluating(self.model, memory.head):
                    memory.outputs = self.model(memory.inputs).softmax(-1)
        self.centre = self.copy_of_weights()

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`ContinualMethod.state_dict`."""
        memories = [memory.state() for memory in self.memories]
        return super().state_dict() | {"centre": self.centre, "memories": memories}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ContinualMethod.load_state_dict`."""
        super().load_state_dict(state)
        self.centre, self.memories = dict(state["centre"]), memories_from_state(state["memories"])
