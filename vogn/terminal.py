"""Progress bars on standard error, in one form."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def progress(text: str, *, counted: bool = False, always: bool = False) -> Progress:
    """A bar with a description, a text, the time that has passed and the time that is left.

    Args:
        text: behind the bar, in which ``{task.fields[NAME]}`` are fields of a row.
        counted: whether ``done/total`` stands before the text.
        always: whether there is a bar where standard error is no terminal.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    count = [MofNCompleteColumn()] if counted else []
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *count,
        TextColumn(text),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not (always or console.is_terminal),
    )
