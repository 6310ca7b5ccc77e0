"""Avalanche: every method of :mod:`vogn.continual` as a plugin of its supervised strategies.

Avalanche finds callbacks by their names, so nothing of it is imported here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from vogn.continual import ContinualMethod, MultiHead, VariationalContinualLearning, select_head
from vogn.errors import NonFiniteStatisticsError
from vogn.optim.base import NaturalGradient


class ContinualPlugin:
    """Remembers earlier experiences the way a :class:`vogn.continual.ContinualMethod` does.

    An experience is a task. After every backward pass the plugin adds the gradient of ``penalty() / N``, with ``N``
    examples in the experience, to that of the strategy's criterion: give it ``criterion=method.likelihood``. At the end
    of an experience the method is shown its data. The optimizer is the strategy's, which Avalanche keeps from one
    experience to the next.

    :class:`vogn.continual.VariationalContinualLearning` has an optimizer of its own, which takes the place of the
    strategy's during an experience; weights are a sample from before the forward to after the backward pass, and the
    evaluation that follows an experience gets logarithms of probabilities averaged over weight samples.

    With a :class:`vogn.continual.MultiHead`, the task label of an experience is the number of its head; the labels of
    every experience then begin at 0 (``class_ids_from_zero_in_each_exp=True``).

    Args:
        method: new; its model is the strategy's.

    Example: (with Avalanche)
        ``Naive(model=model, optimizer=Adam(...), criterion=method.likelihood, plugins=[ContinualPlugin(method)])``
    """

    supports_distributed = False
    """Read by Avalanche: it warns where several processes train."""

    def __init__(self, method: ContinualMethod) -> None:
        self.method = method
        self._shapes = {name: p.shape for name, p in method.weights().items()}
        self._multi_head = any(isinstance(module, MultiHead) for module in method.model.modules())
        self._own: NaturalGradient | None = None
        self._replaced: Any = None
        self._training = False

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The task begins; after an error within an experience, anew from the weights that it has left.

        Raises:
            ValueError: if the strategy has another model, the model has grown, or the experience is a part of one.
            RuntimeError: if several processes train.
        """
        self._give_back(strategy)  # an experience that was broken off
        if strategy.model is not self.method.model:
            raise ValueError("the strategy trains another model than the method of the plugin: give both the same")
        if {name: p.shape for name, p in self.method.weights().items()} != self._shapes:
            raise ValueError(
                "the model's parameters have changed since the plugin was made: give it all outputs from the start "
                "(vogn.continual.MultiHead), no growing heads such as IncrementalClassifier"
            )
        if hasattr(strategy.experience, "is_first_subexp"):
            raise ValueError("an experience of an online stream is a part of a task: give the plugin whole experiences")
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_world_size() > 1:
            raise RuntimeError("ContinualPlugin runs in one process: what the methods measure is not reduced")
        self._select(strategy.experience.task_labels if self._multi_head else [])
        self.method.begin_task(len(strategy.experience.dataset))
        if isinstance(self.method, VariationalContinualLearning):
            own = self.method.optimizer()
            if any(int(group["mc_samples"]) != 1 for group in own.param_groups):
                raise ValueError("mc_samples must be 1: the strategy makes one forward pass per batch")
            self._own, self._replaced, strategy.optimizer = own, strategy.optimizer, own
        self._training = True

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """The head of the batch; with an optimizer of this library, a weight sample."""
        self._select(self._labels(strategy))
        if self._own is not None:
            self._own.sample_()

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        """Back to the mean; the gradient of the penalty.

        Raises:
            NonFiniteStatisticsError: if the loss or the penalty is NaN or infinite.
        """
        if self._own is not None:
            self._own.restore_()
        self.method.before_step()
        penalty = self.method.penalty()
        loss, cost = float(strategy.loss.detach()), float(penalty.detach())
        if not (math.isfinite(loss) and math.isfinite(cost)):
            raise NonFiniteStatisticsError(
                f"training diverged: the loss is {loss:g}, the penalty {cost:g}; lower the learning rate or strength"
            )
        if penalty.requires_grad:
            (penalty / self.method.examples).backward()

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        """The optimizer has moved the weights."""
        self.method.after_step()

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Show the method the data of the experience, without what other plugins have added to it."""
        dataset = strategy.experience.dataset
        loader = DataLoader(
            dataset, batch_size=strategy.train_mb_size, collate_fn=getattr(dataset, "collate_fn", None)
        )
        device = next(self.method.model.parameters()).device
        self._select(strategy.experience.task_labels if self._multi_head else [])
        self.method.after_task([(batch[0].to(device), batch[1].to(device)) for batch in loader])
        self._give_back(strategy)

    def before_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """The head of the batch."""
        self._select(self._labels(strategy))

    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """After an experience, predictions of the posterior: their logarithms are logits."""
        method = self.method
        if not isinstance(method, VariationalContinualLearning) or self._training:
            return
        if method.samples and method.posterior is not None:
            strategy.mb_output = method.outputs(strategy.mb_x).clamp_min(torch.finfo(torch.float32).tiny).log()

    def _give_back(self, strategy: Any) -> None:
        """The strategy has its own optimizer again; an open weight sample is dropped."""
        if self._own is not None:
            self._own.close()
            strategy.optimizer, self._own, self._replaced = self._replaced, None, None
        self._training = False

    def _labels(self, strategy: Any) -> list[int]:
        """Task labels of the batch; none for a model with one head."""
        if not self._multi_head:
            return []
        found: Tensor = strategy.mb_task_id
        return found.unique().tolist()

    def _select(self, labels: list[int]) -> None:
        """Use the head of these task labels.

        Raises:
            ValueError: if there are several.
        """
        if len(labels) > 1:
            raise ValueError(f"a model with heads takes one task at a time, these examples are of {sorted(labels)}")
        if labels:
            select_head(self.method.model, int(labels[0]))
