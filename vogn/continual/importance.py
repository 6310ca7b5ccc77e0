"""Penalties with one importance per weight."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.continual.method import ContinualMethod, Loader, OptimizerFactory
from vogn.continual.ranges import check_not_negative
from vogn.likelihoods import Likelihood


class ImportancePenalty(ContinualMethod):
    """``penalty = strength sum_j importance_j (theta_j - theta*_j)^2``.

    Args:
        model, likelihood, optimizer: see :class:`ContinualMethod`.
        strength: >= 0.

    Raises:
        ValueError: if the strength is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        strength: float = 1.0,
        optimizer: OptimizerFactory | None = None,
    ) -> None:
        super().__init__(model, likelihood, optimizer=optimizer)
        check_not_negative(strength=strength)
        self.strength = strength
        self.centre = self.copy_of_weights()
        self.importance = {name: torch.zeros_like(p) for name, p in self.centre.items()}
        """``{name: shape}``, zero before the first task has ended."""

    def penalty(self) -> Tensor:
        """See :class:`ImportancePenalty`."""
        parts = [
            (self.importance[name] * (p - self.centre[name]).square()).sum() for name, p in self.weights().items()
        ]
        return self.strength * torch.stack(parts).sum()

    def after_task(self, loader: Loader) -> None:
        """Add the importances of the task; the present weights become the centre."""
        for name, found in self.measure(self.batches(loader)).items():
            self.importance[name] = self.importance[name] + found
        self.centre = self.copy_of_weights()

    @abstractmethod
    def measure(self, batches: list[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Importances of the task that has been trained, ``{name: shape}``, >= 0."""

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`ContinualMethod.state_dict`."""
        return super().state_dict() | {"centre": self.centre, "importance": self.importance}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ContinualMethod.load_state_dict`."""
        super().load_state_dict(state)
        self.centre, self.importance = dict(state["centre"]), dict(state["importance"])
