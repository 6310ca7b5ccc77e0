"""A run over tasks: train, test all tasks, keep what the method keeps, and go on; resumable at every batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vogn.continual.checkpoint import read_checkpoint, write_checkpoint
from vogn.continual.errors import StoppedError
from vogn.continual.generators import cuda_devices, generator_states, restore_generators
from vogn.continual.heads import evaluating, select_head
from vogn.continual.method import ContinualMethod
from vogn.continual.result import ContinualResult
from vogn.continual.tasks import Task, check_tasks
from vogn.continual.training import train_step
from vogn.continual.watching import Silent, Watcher
from vogn.data import DataError, epoch_batches
from vogn.errors import CheckpointError
from vogn.posterior.checkpoint import difference

BatchNormPolicy = Literal["running", "freeze"]
BATCHNORM_POLICIES: tuple[BatchNormPolicy, ...] = ("running", "freeze")
TEST_BATCH = 512
PARTS = {"tasks": "its tasks are others"}
EPOCHS_PER_TASK = 1_000_000
"""Epochs are numbered through all tasks, so that no two have the same order of examples."""


@dataclass
class Position:
    """Where a run stands.

    Args:
        task: number of the present task; the number of tasks at the end.
        epoch: epochs of it that are done.
        batch: batches of the present epoch that are done.
        baseline: accuracies before any training.
        matrix: a row for every task that is done.
    """

    task: int = 0
    epoch: int = 0
    batch: int = 0
    baseline: list[float] = field(default_factory=list)
    matrix: list[list[float]] = field(default_factory=list)


def run_tasks(
    method: ContinualMethod,
    tasks: Sequence[Task],
    *,
    epochs: int = 10,
    batch_size: int = 64,
    seed: int = 0,
    folder: str | Path | None = None,
    batchnorm: BatchNormPolicy = "running",
    checkpoint_every: int = 200,
    watcher: Watcher | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> ContinualResult:
    """Train on one task after the other; after each, test on all.

    With a folder, ``checkpoint.pt`` there is replaced every so many batches and after every task. A run that was killed
    goes on from it when it is called again with the same arguments and a model and method that are built in the same
    way, and ends, on the same CPU, with the same weights bit for bit. The order of the examples is a function of
    ``seed``; torch's generators, those of the model's GPUs included, are seeded with it, stored in checkpoints, and
    left as they were.

    Args:
        method: new, with the model in its initial state.
        tasks: at least one.
        epochs: over each task, >= 1.
        batch_size: >= 1.
        seed: >= 0.
        folder: made if need be; ``None`` keeps nothing.
        batchnorm: ``"running"``: every task is trained in training mode and leaves its running statistics, with which
            the earlier tasks are tested too; ``"freeze"``: the statistics of the first task are used, and kept, in all
            later ones. The same without batch norm.
        checkpoint_every: batches, >= 1.
        watcher: looks on, for example :func:`vogn.continual.progress_bar`.
        should_stop: asked after every batch; where it says yes, a checkpoint is written.

    Returns:
        The accuracies.

    Raises:
        StoppedError: if ``should_stop`` said so.
        CheckpointError: if the folder's checkpoint is damaged or of another run.
        DataError: if the tasks do not make one sequence, or a head has fewer outputs than its task.
        ValueError: if a number is out of range, or the model lacks a head.
        NonFiniteStatisticsError: if training diverges.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("checkpoint_every", checkpoint_every)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    if batchnorm not in BATCHNORM_POLICIES:
        raise ValueError(f"batchnorm={batchnorm!r}: choose 'running' or 'freeze'")
    check_tasks(tasks)
    for task in tasks:
        _check_head(method.model, task)
    path = None if folder is None else Path(folder) / "checkpoint.pt"
    run = _Run(method, tasks, epochs, batch_size, seed, batchnorm, path, watcher or Silent())
    with torch.random.fork_rng(devices=cuda_devices(method.model)):
        torch.manual_seed(seed)
        run.begin()
        while run.position.task < len(tasks):
            run.train(checkpoint_every, should_stop)
            run.finish_task()
            if should_stop() and run.position.task < len(tasks):
                raise StoppedError(f"stopped after {run.position.task} of {len(tasks)} tasks")
    return ContinualResult([task.name for task in tasks], run.position.matrix, run.position.baseline)


class _Run:
    """The state of :func:`run_tasks`."""

    def __init__(
        self,
        method: ContinualMethod,
        tasks: Sequence[Task],
        epochs: int,
        batch_size: int,
        seed: int,
        batchnorm: BatchNormPolicy,
        path: Path | None,
        watcher: Watcher,
    ) -> None:
        self.method, self.tasks, self.epochs = method, tasks, epochs
        self.batch_size, self.seed, self.batchnorm = batch_size, seed, batchnorm
        self.path, self.watcher = path, watcher
        self.position = Position()
        self.description = self._description()
        self.optimizer: torch.optim.Optimizer | None = None

    def begin(self) -> None:
        """From the checkpoint, or from the beginning."""
        device = next(self.method.model.parameters()).device
        found = None if self.path is None else read_checkpoint(self.path, device)
        if found is not None:
            self._restore(found)
            return
        self.position.baseline = self._accuracies()

    def train(self, checkpoint_every: int, should_stop: Callable[[], bool]) -> None:
        """The rest of the present task.

        Raises:
            StoppedError: see :func:`run_tasks`.
        """
        position = self.position
        task = self.tasks[position.task]
        select_head(self.method.model, task.head)
        if self.optimizer is None:
            self.method.begin_task(len(task.x_train))
            self.optimizer = self.method.optimizer()
        self.method.model.train()
        if self.batchnorm == "freeze" and position.task > 0:
            for module in self.method.model.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        while position.epoch < self.epochs:
            number = position.task * EPOCHS_PER_TASK + position.epoch
            batches = epoch_batches(len(task.x_train), self.batch_size, self.seed, number)
            while position.batch < len(batches):
                chosen = batches[position.batch].to(task.x_train.device)
                loss = train_step(self.method, self.optimizer, task.x_train[chosen], task.y_train[chosen])
                position.batch += 1
                done = position.epoch * len(batches) + position.batch
                stop = should_stop()
                if stop or done % checkpoint_every == 0:
                    self.save()
                self.watcher.batch_done(position.task, task, done, self.epochs * len(batches), loss)
                if stop:
                    raise StoppedError(f"stopped in task {position.task + 1} of {len(self.tasks)}, batch {done}")
            position.epoch, position.batch = position.epoch + 1, 0

    def finish_task(self) -> None:
        """Keep what the method keeps, test all tasks, write a checkpoint."""
        position = self.position
        task = self.tasks[position.task]
        loader = list(zip(task.x_train.split(TEST_BATCH), task.y_train.split(TEST_BATCH), strict=True))
        self.method.after_task(loader)
        self.optimizer = None
        position.matrix.append(self._accuracies())
        self.watcher.task_done(position.task, task, position.matrix[-1])
        position.task, position.epoch, position.batch = position.task + 1, 0, 0
        self.save()

    def save(self) -> None:
        """Write where the run stands."""
        if self.path is None:
            return
        content = {
            "run": self.description,
            "position": dict(vars(self.position)),
            "model": self.method.model.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": None if self.optimizer is None else self.optimizer.state_dict(),
            "generators": generator_states(self.method.model),
        }
        write_checkpoint(self.path, content)

    def _restore(self, content: dict[str, Any]) -> None:
        if content.get("run") != self.description:
            other = difference(content.get("run"), self.description, parts=PARTS)
            raise CheckpointError(f"{self.path} is of another run: {other}; give the same arguments, or another folder")
        self.position = Position(**content["position"])
        self.method.model.load_state_dict(content["model"])
        self.method.load_state_dict(content["method"])
        if content["optimizer"] is not None:
            select_head(self.method.model, self.tasks[self.position.task].head)
            self.optimizer = self.method.optimizer()
            self.optimizer.load_state_dict(content["optimizer"])
        restore_generators(content["generators"])

    def _accuracies(self) -> list[float]:
        return [accuracy(self.method, task) for task in self.tasks]

    def _description(self) -> str:
        """What must be the same for a checkpoint to fit, as JSON."""
        settings = {
            name: value
            for name, value in vars(self.method).items()
            if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name != "examples"
        }
        return json.dumps(
            {
                "method": type(self.method).__name__,
                "settings": settings,
                "options": {k: str(v) for k, v in getattr(self.method, "options", {}).items()},
                "epochs": self.epochs,
                "batch size": self.batch_size,
                "seed": self.seed,
                "batchnorm": self.batchnorm,
                "tasks": [[t.name, t.head, t.outputs, _digest(t.x_train), _digest(t.y_train)] for t in self.tasks],
                "weights": {name: list(p.shape) for name, p in self.method.model.named_parameters()},
            }
        )


def accuracy(method: ContinualMethod, task: Task) -> float:
    """Share of the test examples of a task whose label has the largest score, in [0, 1]."""
    right = 0
    with evaluating(method.model, task.head):
        for x, y in zip(task.x_test.split(TEST_BATCH), task.y_test.split(TEST_BATCH), strict=True):
            right += int((method.outputs(x).argmax(-1) == y).sum())
    return right / len(task.x_test)


def _check_head(model: nn.Module, task: Task) -> None:
    """The model has the task's head, and it is wide enough.

    Raises:
        ValueError: if there is no such head.
        DataError: if it has fewer outputs than the task.
    """
    with torch.no_grad(), evaluating(model, task.head):
        width = model(task.x_train[:2]).shape[-1]
    if width < task.outputs:
        raise DataError(
            f"task {task.name!r} has {task.outputs} classes, but head {task.head} of the model has {width} outputs: "
            "build the model with more"
        )


def _digest(tensor: Tensor) -> list[float]:
    """Numbers that tell data apart: the length, the sum, and one of some elements that knows their order."""
    flat = tensor.detach().flatten()
    some = flat[:: max(1, len(flat) // 10_000)].double()
    ranks = torch.linspace(0, 1, len(some)).to(some)
    return [float(len(tensor)), float(flat.sum(dtype=torch.float64)), float(some @ ranks)]
