"""One training step of a task under what is known of the earlier ones."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
from torch import Tensor

from vogn.continual.method import ContinualMethod
from vogn.errors import NonFiniteStatisticsError
from vogn.optim.base import NaturalGradient


def train_step(method: ContinualMethod, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    """Loss, penalty and step on one batch.

    With an optimizer of this library the loss is that of weight samples, as many as its ``mc_samples``; the penalty is
    taken at the mean.

    Args:
        method: whose task has begun, with the task's head selected.
        optimizer: of the task.
        x: inputs.
        y: targets.

    Returns:
        The mean loss, without the penalty.

    Raises:
        NonFiniteStatisticsError: if the loss or the penalty is NaN or infinite; the weights are as before the step.
    """
    natural = optimizer if isinstance(optimizer, NaturalGradient) else None
    contexts = 1 if natural is None else int(natural.param_groups[0]["mc_samples"])
    optimizer.zero_grad()
    value = 0.0
    for _ in range(contexts):
        with nullcontext() if natural is None else natural.sampled_params():
            loss = method.likelihood(method.model(x), y)
            loss.backward()
        value += float(loss.detach()) / contexts
    method.before_step(contexts)
    penalty = method.penalty()
    if not (math.isfinite(value) and math.isfinite(float(penalty.detach()))):
        raise NonFiniteStatisticsError(
            f"training diverged: the loss is {value:g}, the penalty {float(penalty.detach()):g}; lower lr or strength"
        )
    if penalty.requires_grad:
        (penalty * contexts / method.examples).backward()
    optimizer.step()
    method.after_step()
    return value
