"""Tasks of continual learning: permuted inputs and split classes of any labelled arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from vogn.data import DataError

Scenario = Literal["task", "domain", "class"]
"""``"task"``: a head for each task, which is told at test time; ``"domain"``: one head whose outputs all tasks share;
``"class"``: one head with an output for every class of all tasks."""
SCENARIOS: tuple[Scenario, ...] = ("task", "domain", "class")

_PERMUTATION_STREAM = 0x9E57


@dataclass(frozen=True)
class Task:
    """One task: training and test examples of a classification.

    Args:
        name: for tables and messages.
        x_train: ``(N, ...)``, floating point, finite.
        y_train: ``(N,)``, whole numbers ``0 .. outputs - 1``, of two classes at least.
        x_test: ``(M, ...)``.
        y_test: ``(M,)``.
        outputs: number of outputs of the head.
        head: number of the head, from 0; see :class:`vogn.continual.MultiHead`.

    Raises:
        DataError: naming the task, for no examples, sizes that differ, NaN, labels outside the head, a single class.
    """

    name: str
    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor
    outputs: int
    head: int = 0

    def __post_init__(self) -> None:
        if self.outputs < 2 or self.head < 0:
            raise DataError(
                f"task {self.name!r}: outputs={self.outputs} must be at least 2 and head={self.head} at least 0"
            )
        for part, x, y in (("training", self.x_train, self.y_train), ("test", self.x_test, self.y_test)):
            self._check(part, x, y)
        found = self.y_train.unique()
        if len(found) < 2:
            raise DataError(
                f"task {self.name!r} has training examples of a single class ({int(found[0])}): there is nothing to "
                "tell apart; give it two classes or more"
            )

    def _check(self, part: str, x: Tensor, y: Tensor) -> None:
        if len(x) == 0:
            raise DataError(f"task {self.name!r} has no {part} examples; leave the task out, or give it some")
        if y.shape != (len(x),):
            raise DataError(
                f"task {self.name!r}: {len(x)} {part} inputs but labels of shape {tuple(y.shape)}; give one label each"
            )
        if not x.is_floating_point():
            raise DataError(f"task {self.name!r}: {part} inputs have dtype {x.dtype}; give floating point numbers")
        if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
            raise DataError(f"task {self.name!r}: {part} labels have dtype {y.dtype}; give whole numbers")
        if not bool(torch.isfinite(x).all()):
            raise DataError(f"task {self.name!r}: {part} inputs hold NaN or infinity; clean them first")
        low, high = int(y.min()), int(y.max())
        if low < 0 or high >= self.outputs:
            raise DataError(
                f"task {self.name!r}: {part} labels {low} to {high} do not fit a head with {self.outputs} outputs "
                f"(0 to {self.outputs - 1}); number the classes from 0, or give the head more outputs"
            )


def permuted_tasks(
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    tasks: int = 5,
    outputs: int | None = None,
    scenario: Scenario = "domain",
    seed: int = 0,
) -> list[Task]:
    """The same classes with the input features in another order in every task; the first keeps its order.

    Args:
        x_train: ``(N, ...)``; one order of all features of an example (pixels) holds for all examples of a task.
        y_train: ``(N,)``, whole numbers from 0.
        x_test: ``(M, ...)``.
        y_test: ``(M,)``.
        tasks: number of tasks, >= 1.
        outputs: number of classes; ``None`` is the largest label plus one.
        scenario: ``"domain"`` (one head) or ``"task"`` (a head for each task).
        seed: of the orders, >= 0.

    Returns:
        The tasks; inputs are flat, ``(N, features)``.

    Raises:
        DataError: for data that :class:`Task` refuses.
        ValueError: if ``tasks < 1``, or the scenario is another one.

    Source: Goodfellow et al. (2013), "An Empirical Investigation of Catastrophic Forgetting"; Kirkpatrick et al.
    (2017).
    """
    if tasks < 1:
        raise ValueError(f"tasks={tasks} must be at least 1")
    if scenario not in ("domain", "task"):
        raise ValueError(f"scenario={scenario!r}: permuted tasks share their classes; choose 'domain' or 'task'")
    count = _count(y_train, y_test) if outputs is None else outputs
    flat_train, flat_test = x_train.flatten(1), x_test.flatten(1)
    found = []
    for k in range(tasks):
        order = torch.arange(flat_train.shape[1])
        if k:
            generator = np.random.default_rng([_PERMUTATION_STREAM, seed, k])
            order = torch.from_numpy(generator.permutation(len(order)))
        head = k if scenario == "task" else 0
        order = order.to(flat_train.device)
        found.append(
            Task(f"permutation {k}", flat_train[:, order], y_train, flat_test[:, order], y_test, count, head)
        )
    return found


def split_tasks(
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    *,
    classes: Sequence[Sequence[int]] | None = None,
    per_task: int = 2,
    scenario: Scenario = "task",
) -> list[Task]:
    """Some of the classes in every task.

    Args:
        x_train: ``(N, ...)``.
        y_train: ``(N,)``, whole numbers from 0.
        x_test: ``(M, ...)``.
        y_test: ``(M,)``.
        classes: of each task; no class twice. ``None`` takes ``per_task`` at a time in their order, and leaves out the
            last ones if they are fewer.
        per_task: see ``classes``; >= 2.
        scenario: see :data:`Scenario`. With ``"task"`` and ``"domain"`` the classes of a task are numbered from 0 in
            the order given; ``"class"`` keeps the labels.

    Returns:
        The tasks.

    Raises:
        DataError: for data that :class:`Task` refuses, or a task without examples.
        ValueError: for an unknown scenario, a class that is in two tasks, or ``per_task < 2``.

    Source: Zenke, Poole, Ganguli (2017); van de Ven and Tolias (2019), "Three Scenarios for Continual
    Learning".
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario={scenario!r}: choose one of {', '.join(SCENARIOS)}")
    total = _count(y_train, y_test)
    if classes is None:
        if per_task < 2:
            raise ValueError(f"per_task={per_task} must be at least 2")
        classes = [tuple(range(k, k + per_task)) for k in range(0, total - per_task + 1, per_task)]
    everything = [label for group in classes for label in group]
    if len(set(everything)) != len(everything):
        raise ValueError(f"classes={[list(group) for group in classes]}: a class is in two places")
    width = total if scenario == "class" else max((len(group) for group in classes), default=0)
    found = []
    for k, group in enumerate(classes):
        name = "classes " + ", ".join(map(str, group))
        train = _part(x_train, y_train, group, rename=scenario != "class")
        test = _part(x_test, y_test, group, rename=scenario != "class")
        found.append(Task(name, *train, *test, outputs=width, head=k if scenario == "task" else 0))
    if not found:
        raise DataError(f"{total} classes make no task of {per_task}")
    return found


def check_tasks(tasks: Sequence[Task]) -> None:
    """The tasks make one sequence.

    Raises:
        DataError: if there is none, or inputs or numbers of outputs of one head differ.
    """
    if not tasks:
        raise DataError("there are no tasks; give at least one")
    shape = tasks[0].x_train.shape[1:]
    outputs: dict[int, int] = {}
    for task in tasks:
        if task.x_train.shape[1:] != shape or task.x_test.shape[1:] != shape:
            raise DataError(
                f"task {task.name!r} has inputs of shape {tuple(task.x_train.shape[1:])}, the first one {tuple(shape)}"
            )
        if outputs.setdefault(task.head, task.outputs) != task.outputs:
            raise DataError(f"task {task.name!r}: head {task.head} has {outputs[task.head]} outputs in an earlier task")


def _part(x: Tensor, y: Tensor, classes: Sequence[int], *, rename: bool) -> tuple[Tensor, Tensor]:
    """The examples of these classes; ``rename`` numbers the classes from 0."""
    kept = torch.isin(y, torch.tensor(list(classes), device=y.device))
    labels = y[kept]
    if rename:
        renamed = torch.zeros_like(labels)
        for number, label in enumerate(classes):
            renamed[labels == label] = number
        labels = renamed
    return x[kept], labels


def _count(*labels: Tensor) -> int:
    """The largest label plus one; 0 without labels."""
    return max((int(y.max()) + 1 for y in labels if len(y)), default=0)
