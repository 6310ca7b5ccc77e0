"""Progress of a run on standard error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from vogn.rl.runner import RunResult
from vogn.terminal import progress

LATEST = 20
"""Episodes whose mean return is shown."""


class Bar(Protocol):
    """What :func:`progress_bar` yields: the watcher of either kind of run."""

    def episode_done(self, step: int, result: RunResult) -> None:
        """For :func:`vogn.rl.run_agent`."""

    def round_done(self, done: int, regret: float) -> None:
        """For :func:`vogn.rl.run_bandit`."""


@contextmanager
def progress_bar(total: int, label: str = "rl") -> Iterator[Bar]:
    """A bar with steps or rounds, the latest returns or the regret so far, and the time left.

    Args:
        total: steps of the run, or rounds.
        label: stands in front.

    Example:
        >>> from vogn.rl import progress_bar
        >>> with progress_bar(5000) as bar:  # run_agent(..., watcher=bar.episode_done)
        ...     pass
    """
    with progress("{task.fields[state]}", counted=True) as bar:
        row = bar.add_task(label, total=total, state="")

        class Shown:
            def episode_done(self, step: int, result: RunResult) -> None:
                latest = min(LATEST, len(result.episodes))
                text = f"return {result.mean_return(LATEST):.1f} (last {latest} episodes)"
                bar.update(row, completed=min(step, total), state=text)

            def round_done(self, done: int, regret: float) -> None:
                bar.update(row, completed=done, state=f"regret {regret:.1f}")

        yield Shown()
