"""Synaptic intelligence: the importance of a weight is its share in the fall of the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.continual.importance import ImportancePenalty
from vogn.continual.method import OptimizerFactory
from vogn.continual.ranges import check_positive
from vogn.likelihoods import Likelihood


class SynapticIntelligence(ImportancePenalty):
    """``omega_j = -sum_steps g_j Delta theta_j``, ``importance_j += max(omega_j, 0) / (Delta_j^2 + xi)``.

    ``g`` is the gradient of the summed loss of the task without the penalty, ``Delta theta`` what the optimizer really
    did, ``Delta_j`` the way from the beginning to the end of the task. The loss is a sum here, in the paper a mean:
    with tasks of equal sizes the strengths are the same.

    Args:
        model, likelihood, strength, optimizer: see :class:`ImportancePenalty`; ``c`` in the paper.
        xi: > 0, keeps weights that did not move from an infinite importance.

    Raises:
        ValueError: if a number is out of range.

    Source: Zenke, Poole, Ganguli (2017), "Continual Learning Through Synaptic Intelligence".
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        strength: float = 0.1,
        xi: float = 0.1,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(model, likelihood, strength=strength, optimizer=optimizer)
        check_positive(xi=xi)
        self.xi = xi
        self._forget_path()
        self._before: dict[str, tuple[Tensor, Tensor]] = {}

    def begin_task(self, examples: int) -> None:
        """See :meth:`ContinualMethod.begin_task`; the paths begin here."""
        super().begin_task(examples)
        self._forget_path()

    def before_step(self, contexts: int = 1) -> None:
        """Note gradients and weights."""
        self._before = {
            name: (p.grad.detach() / contexts, p.detach().clone())
            for name, p in self.weights().items()
            if p.grad is not None
        }

    def after_step(self) -> None:
        """Add the step to the paths."""
        weights = self.weights()
        for name, (gradient, old) in self._before.items():
            self.path[name] -= self.examples * gradient * (weights[name].detach() - old)
        self._before = {}

    def measure(self, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """See :class:`SynapticIntelligence`; the data are not looked at."""
        return {
            name: self.path[name].clamp_min(0.0) / ((p.detach() - self.start[name]).square() + self.xi)
            for name, p in self.weights().items()
        }

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`ContinualMethod.state_dict`."""
        return super().state_dict() | {"path": self.path, "start": self.start}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ContinualMethod.load_state_dict`."""
        super().load_state_dict(state)
        self.path, self.start = dict(state["path"]), dict(state["start"])

    def _forget_path(self) -> None:
        self.start = self.copy_of_weights()
        self.path = {name: torch.zeros_like(p) for name, p in self.start.items()}
        """``omega``, ``{name: shape}``, in nats."""
