"""Training a student on a teacher's predictive distribution."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vogn.data.order import epoch_batches
from vogn.distillation.distilled import Distilled
from vogn.distillation.heads import head_for
from vogn.likelihoods import Likelihood
from vogn.posterior import Posterior
from vogn.predict import predict

WARM_UP = 0.05
"""Share of the run in which the learning rate rises."""


def distill(
    model: nn.Module,
    posterior: Posterior,
    student: nn.Module,
    x: Any,
    *,
    method: str = "mc",
    samples: int = 100,
    likelihood: Likelihood | None = None,
    epochs: int = 100,
    batch_size: int = 64,
    lr: float = 3e-3,
    weight_decay: float = 1e-4,
    seed: int = 0,
    watch: Callable[[int, float], None] | None = None,
    **options: Any,
) -> Distilled:
    """Train ``student`` to predict what ``vogn.predict(model, posterior, x)`` does, its uncertainty included.

    The teacher is asked once; labels are not needed. The student knows the teacher's uncertainty where ``x`` lies: give
    it inputs as those that will come, and inputs away from the training data if uncertainty there shall be kept. Its
    weights are trained in place, by AdamW with warm-up and cosine decay.

    Args:
        model: the teacher's network.
        posterior: over its weights.
        student: another network: ``K + 1`` outputs for ``K`` classes (logits, and one for the epistemic share), ``2 K``
            for ``K`` real targets (means, and one each for the epistemic variance).
        x: inputs: a tensor, or a tuple or dictionary of tensors with the examples in their first dimension.
        method, samples: of :func:`vogn.predict`, for the teacher.
        likelihood: ``None`` takes the posterior's.
        epochs: passes over ``x``, >= 1.
        batch_size: examples per step, >= 1.
        lr: peak of the learning rate, > 0.
        weight_decay: of AdamW, >= 0.
        seed: of the order of the examples and of the teacher's weight samples.
        watch: called after every epoch with its number, from 0, and the mean loss in nats.
        **options: further arguments of :func:`vogn.predict`.

    Returns:
        The student with ``predict``.

    Raises:
        ValueError: if a number is out of range, the student has another number of outputs, the likelihood has no head,
            or the loss is not finite.

    Example:
        >>> import torch, vogn
        >>> from vogn.distillation import distill
        >>> _ = torch.manual_seed(0)
        >>> x = torch.randn(60, 2)
        >>> y, model = (x[:, 0] > 0).long(), torch.nn.Linear(2, 2)
        >>> posterior = vogn.laplace(model, vogn.likelihoods.Categorical(), [(x, y)])
        >>> student = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> small = distill(model, posterior, student, x, epochs=200)
        >>> teacher = vogn.predict(model, posterior, x, samples=100)
        >>> float((small.predict(x).mean - teacher.mean).abs().mean()) < 0.02
        True

    Source: Hinton, Vinyals, Dean (2015), "Distilling the Knowledge in a Neural Network"; Malinin, Mlodozeniec, Gales
    (2020), "Ensemble Distribution Distillation", for the Dirichlet distribution, here fitted by its moments.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if int(value) != value or value < 1:
            raise ValueError(f"{name}={value} must be a whole number, at least 1")
    if not (0 < lr < math.inf and 0 <= weight_decay < math.inf):
        raise ValueError(f"lr={lr} must be positive and weight_decay={weight_decay} at least 0, both finite")
    teacher = predict(
        model, posterior, x, method=method, samples=samples, likelihood=likelihood, seed=seed,
        keep_samples=False, **options,
    )  # fmt: skip
    head = head_for(teacher.likelihood)
    parameter = next(student.parameters())
    targets = {name: value.to(parameter) for name, value in head.targets(teacher).items()}
    count, wanted = len(teacher.mean), head.outputs(teacher)
    optimizer = torch.optim.AdamW(student.parameters(), lr=lr, weight_decay=weight_decay)
    step, steps = 0, epochs * len(epoch_batches(count, batch_size, seed, 0))
    training = student.training
    student.train()
    for epoch in range(epochs):
        total = 0.0
        for rows in epoch_batches(count, batch_size, seed, epoch):
            rate = lr * min(1.0, (step + 1) / (WARM_UP * steps)) * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            for group in optimizer.param_groups:
                group["lr"] = rate
            outputs = _called(student, x, rows, parameter)
            if outputs.ndim != 2 or outputs.shape[1] != wanted:
                raise ValueError(
                    f"the student returns outputs of shape {tuple(outputs.shape)}; (N, {wanted}) is needed"
                )
            loss = head.loss(outputs, {name: value[rows.to(value.device)] for name, value in targets.items()})
            if not math.isfinite(float(loss.detach())):
                raise ValueError(f"the loss is not finite in epoch {epoch}: check the inputs, or lower lr={lr}")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += float(loss.detach()) * len(rows)
            step += 1
        if watch is not None:
            watch(epoch, total / count)
    student.train(training)
    return Distilled(student, head)


def _called(student: nn.Module, x: Any, rows: Tensor, parameter: Tensor) -> Tensor:
    """The student on some examples."""

    def part(leaf: Tensor) -> Tensor:
        chosen = leaf[rows.to(leaf.device)].to(parameter.device)
        return chosen.to(parameter.dtype) if chosen.is_floating_point() else chosen

    if isinstance(x, Mapping):
        return torch.as_tensor(student(**tree_map(part, dict(x))))
    return torch.as_tensor(student(*tree_map(part, x)) if isinstance(x, tuple) else student(part(x)))
