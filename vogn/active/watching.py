"""Who looks on while a learner asks and learns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from vogn.terminal import progress


class Watcher(Protocol):
    """What a run tells."""

    def asked(self, wanted: int, given: int) -> None:
        """So many of the labels that are wanted have been given."""

    def step_done(self, done: int, total: int, loss: float) -> None:
        """So many steps of the present training are done."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """A row of the result."""


class Silent:
    """Tells nobody."""

    def asked(self, wanted: int, given: int) -> None:
        """Nothing."""

    def step_done(self, done: int, total: int, loss: float) -> None:
        """Nothing."""

    def round_done(self, row: Mapping[str, Any]) -> None:
        """Nothing."""


@contextmanager
def progress_bar(rounds: int, label: str = "active") -> Iterator[Watcher]:
    """A bar on standard error with the number of labels, the latest metric and the time left.

    Args:
        rounds: trainings in all.
        label: stands in front.

    Example:
        >>> from vogn.active import progress_bar
        >>> with progress_bar(5) as watcher:  # learner.run(5, watcher=watcher)
        ...     pass
    """
    with progress("rounds  {task.fields[state]}", counted=True) as bar:
        task = bar.add_task(label, total=rounds, state="")

        class Bar:
            def __init__(self) -> None:
                self.latest = ""

            def asked(self, wanted: int, given: int) -> None:
                bar.update(task, state=f"label {given} of {wanted}  {self.latest}")

            def step_done(self, done: int, total: int, loss: float) -> None:
                bar.update(task, state=f"step {done}/{total}  {self.latest}")

            def round_done(self, row: Mapping[str, Any]) -> None:
                shown = [f"{key} {row[key]:.4f}" for key in ("accuracy", "rmse") if key in row]
                self.latest = "  ".join([f"{row['labels']} labels", *shown])
                bar.update(task, completed=min(rounds, int(row["round"]) + 1), state=self.latest)

        yield Bar()
