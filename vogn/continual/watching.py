"""Who looks on while a run goes over its tasks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from vogn.continual.tasks import Task
from vogn.terminal import progress


class Watcher(Protocol):
    """What a run tells."""

    def batch_done(self, number: int, task: Task, done: int, total: int, loss: float) -> None:
        """So many batches of task ``number`` are done, of all its epochs."""

    def task_done(self, number: int, task: Task, accuracies: Sequence[float]) -> None:
        """Task ``number`` is trained; the accuracies on the test parts of all tasks."""


class Silent:
    """Tells nobody."""

    def batch_done(self, number: int, task: Task, done: int, total: int, loss: float) -> None:
        """Nothing."""

    def task_done(self, number: int, task: Task, accuracies: Sequence[float]) -> None:
        """Nothing."""


@contextmanager
def progress_bar(tasks: int, label: str = "continual") -> Iterator[Watcher]:
    """A bar on standard error with task, loss and the time left of the task.

    Args:
        tasks: number of tasks.
        label: stands in front.

    Example:
        >>> from vogn.continual import progress_bar
        >>> with progress_bar(5) as watcher:  # run_tasks(..., watcher=watcher)
        ...     pass
    """
    shown = "task {task.fields[number]}  loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.4f}"
    with progress(shown) as bar:
        row = bar.add_task(label, total=None, number=f"1/{tasks}", loss=float("nan"), accuracy=float("nan"))

        class Bar:
            def batch_done(self, number: int, task: Task, done: int, total: int, loss: float) -> None:
                bar.update(row, completed=done, total=total, number=f"{number + 1}/{tasks}", loss=loss)

            def task_done(self, number: int, task: Task, accuracies: Sequence[float]) -> None:
                bar.update(row, accuracy=sum(accuracies[: number + 1]) / (number + 1))

        yield Bar()
