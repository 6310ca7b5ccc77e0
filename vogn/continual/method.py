"""The one protocol: what is kept of a task, and what it costs the next ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vogn.continual.heads import evaluating, selected_head
from vogn.continual.ranges import check_positive
from vogn.likelihoods import Likelihood

Loader = Iterable[tuple[Tensor, Tensor]]
"""Batches ``(inputs, targets)`` of a task, gone through as often as need be: a list or a ``DataLoader``."""
OptimizerFactory = Callable[[nn.Module, int], torch.optim.Optimizer]
"""From the model and the number of examples to the optimizer of one task."""


@dataclass(frozen=True)
class _Adam:
    lr: float

    def __call__(self, model: nn.Module, examples: int) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), lr=self.lr)


def adam(lr: float = 1e-3) -> OptimizerFactory:
    """A new Adam for every task.

    Raises:
        ValueError: if the rate is out of range.
    """
    check_positive(lr=lr)
    return _Adam(lr)


class ContinualMethod(ABC):
    """How a network keeps what it has learnt.

    All numbers are of the *sum* of the losses, in nats: a task of ``N`` examples is trained with
    ``N loss + penalty()``, that is, ``loss + penalty() / N`` with the mean ``loss``. The order of the calls::

        method.begin_task(len(x))
        optimizer = method.optimizer()
        for every batch:  loss.backward(); before_step(); (penalty() / N).backward(); optimizer.step(); after_step()
        method.after_task(loader)

    :func:`vogn.continual.train_step` is the third line. A task's head must be selected meanwhile.

    Args:
        model: whose parameters are trained; the same object for all tasks.
        likelihood: of all tasks; its call is the mean loss.
        optimizer: makes the optimizer of a task; ``None`` is Adam with rate 1e-3.
    """

    def __init__(
        self, model: nn.Module, likelihood: Likelihood, *, optimizer: OptimizerFactory | None = None
    ) -> None:
        self.model = model
        self.likelihood = likelihood
        self.examples = 0
        """Number of examples of the present task."""
        self._factory = optimizer or adam()
        self.trained_by = repr(self._factory) if is_dataclass(self._factory) else ""
        """What makes the optimizers, in words, where it has some: a run is not resumed with another one."""

    def begin_task(self, examples: int) -> None:
        """A task of so many examples begins.

        Raises:
            ValueError: if it has none.
        """
        if examples < 1:
            raise ValueError(f"a task of {examples} examples cannot be trained; leave it out")
        self.examples = examples

    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer for the present task."""
        return self._factory(self.model, self.examples)

    @abstractmethod
    def penalty(self) -> Tensor:
        """What forgetting costs at the present weights, a scalar in nats; in the first task zero, or a prior alone."""

    @abstractmethod
    def after_task(self, loader: Loader) -> None:
        """Keep what the next tasks must know.

        Args:
            loader: the data of the task that has been trained.

        Raises:
            ValueError: if it is empty.
        """

    def before_step(self, contexts: int = 1) -> None:  # noqa: B027
        """``.grad`` holds the gradient of the mean loss, without the penalty, summed over so many weight samples."""

    def after_step(self) -> None:  # noqa: B027
        """The optimizer has moved the weights."""

    def outputs(self, x: Tensor) -> Tensor:
        """Scores whose largest is the prediction, ``(N, K)``: here the outputs at the present weights."""
        with torch.no_grad(), evaluating(self.model, selected_head(self.model)):
            outputs: Tensor = self.model(x)
        return outputs

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain data, for checkpoints."""
        return {"examples": self.examples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state_dict` gave."""
        self.examples = int(state["examples"])

    # ------------------------------------------------------------------ for subclasses

    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def copy_of_weights(self) -> dict[str, Tensor]:
        """A copy of them."""
        return {name: p.detach().clone() for name, p in self.weights().items()}

    def zero(self) -> Tensor:
        """A constant zero where the weights live."""
        like = next(iter(self.weights().values()))
        return like.new_zeros(())

    def batches(self, loader: Loader) -> list[tuple[Tensor, Tensor]]:
        """The loader's batches, at least one.

        Raises:
            ValueError: if there is none.
        """
        found = [(x, y) for x, y in loader]
        if not sum(len(x) for x, _ in found):
            raise ValueError("the loader of the task is empty: there is nothing to keep")
        return found
