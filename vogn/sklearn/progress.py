"""A progress bar over the steps of a run, on standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def shown(steps: int, show: bool) -> Iterator[Callable[[int, float], None] | None]:
    """Yields what is told the number and the loss of every step; ``None`` if nothing shall be shown."""
    if not show:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("loss {task.fields[loss]:.4f}"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("training", total=steps, loss=float("nan"))

        def watch(step: int, loss: float) -> None:
            progress.update(task, completed=step + 1, loss=loss)

        yield watch
