"""What a person sees: a progress bar, tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from vogn.cli.contenders import RECIPES, Recipe
from vogn.cli.session import Session
from vogn.cli.task import Evaluation
from vogn.optim import METHODS
from vogn.report.tables import Column, in_unit
from vogn.report.tables import Table as Figures

if TYPE_CHECKING:
    from typing_extensions import Self

_FIGURE_WIDTH = 12
_MOST_BOXED = 4
"""Columns of figures that have lines between them and fit into 80 characters."""


def say(console: Console, text: str) -> None:
    """Print text as it is: brackets in names are no markup, and lines are not broken."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class Bar:
    """A progress bar that is shown inside ``with``.

    Attributes:
        progress: rich's.
    """

    progress: Progress

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()


class ProgressWatcher(Bar):
    """A progress bar with epoch, loss, accuracy and time left; one line per epoch where there is no terminal."""

    def __init__(self, console: Console, label: str) -> None:
        self.console = console
        self.label = label
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("epoch {task.fields[epoch]}"),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(label, total=None, epoch="-", figures="loss nan")

    def batch_done(self, session: Session, done: int, total: int) -> None:
        """Move the bar."""
        position = session.position
        self.progress.update(
            self.task,
            completed=done,
            total=total,
            epoch=f"{position.epoch + 1}/{session.settings.epochs}",
            figures=_in_words(session.task.training_figures(position)),
        )

    def epoch_done(self, session: Session, row: dict[str, float]) -> None:
        """Write a line where no bar can be drawn."""
        apart = session.task.lines_apart(session.settings.epochs)
        if self.console.is_terminal or (row["epoch"] % apart and row["epoch"] < session.settings.epochs):
            return
        names = [f"{part}_{name}" for part in ("train", "validation") for name in ("loss", session.task.CURVE)]
        figures = _in_words({name: row[name] for name in names if name in row})
        say(self.console, f"{self.label}  epoch {row['epoch']}/{session.settings.epochs}  {figures}")


def _in_words(figures: Mapping[str, float]) -> str:
    """Names and values, in one line."""
    return "  ".join(f"{name.replace('_', ' ')} {_figure(name, value)}" for name, value in figures.items())


def _figure(name: str, value: float) -> str:
    return in_unit(value) if name.endswith("rmse") else f"{value:.4f}"


class RangeTestBar(Bar):
    """A progress bar with learning rate and loss; nothing where there is no terminal.

    Args:
        steps: of the sweep, and of every short run: it begins anew when one more begins; a longer one stays at the end.
    """

    def __init__(self, console: Console, label: str, steps: int) -> None:
        self.label = label
        self._started = 0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("lr {task.fields[lr]:.1e}  loss {task.fields[loss]:.4f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(label, total=steps, lr=float("nan"), loss=float("nan"))

    def __call__(self, number: int, rate: float, loss: float) -> None:
        """Move the bar."""
        if number == 1:
            self._started += 1
            if self._started > 1:
                self.progress.reset(self.task, description=f"{self.label}, short run {self._started - 1}")
        self.progress.update(self.task, completed=number, lr=rate, loss=loss)


def results_table(rows: Sequence[Evaluation], columns: Sequence[Column], title: str) -> Table:
    """The figures of every row; the best of each column is bold."""
    style = {"box": box.SIMPLE_HEAD, "padding": (0, 1, 0, 0)} if len(columns) > _MOST_BOXED else {}
    table = Table(title=Text(title), **style)  # type: ignore[arg-type]
    table.add_column("trained with")
    table.add_column("prediction")
    choose = {"higher": max, "lower": min}
    best = {}
    for column in columns:
        table.add_column(f"{column.heading}\n({column.better})" if column.better else column.heading, justify="right")
        if column.better and len(rows) > 1:
            best[column.name] = choose[column.better](getattr(row.scores, column.name) for row in rows)
    for row in rows:
        cells = []
        for column in columns:
            value = getattr(row.scores, column.name)
            text = column.text(value)
            cells.append(f"[bold]{text}[/bold]" if value == best.get(column.name) else text)
        table.add_row(row.label, row.how, *cells)
    return table


class MeasuringBar(Bar):
    """A progress bar over predictions, with what is predicted next; nothing where there is no terminal."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("measuring"),
            BarColumn(),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.progress.add_task("", total=None)

    def __call__(self, done: int, total: int, about: str) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=done, total=total, description=about)


def figure_tables(table: Figures, title: str, width: int) -> list[Table]:
    """A table of figures for a terminal, cut into several where it is too wide.

    Args:
        table: the figures; those that are best are bold.
        title: above the first one.
        width: of the terminal, in characters.
    """
    labels = max(len(label) for label, _ in table.rows)
    columns = max(1, (width - labels - 4) // _FIGURE_WIDTH)
    count = len(table.headings) - 1
    found = []
    for start in range(0, count, columns):
        part = Table(title=Text(title) if start == 0 else None, box=box.SIMPLE_HEAD)
        part.add_column(table.headings[0], no_wrap=labels < width // 2)
        chosen = slice(start, start + columns)
        for heading in table.headings[1:][chosen]:
            part.add_column(Text(heading), justify="right")
        for label, cells in table.rows:
            texts = []
            for cell in cells[chosen]:
                text = Text(cell.text, style="bold" if cell.best else "")
                if cell.interval and count == 2:
                    text.append(f" ({cell.interval})", style="dim")
                texts.append(text)
            part.add_row(Text(label), *texts)
        found.append(part)
    return found


def methods_table() -> Table:
    """Every method with its summary and the defaults of the command line."""
    table = Table(title="methods")
    for heading in ("--method", "what it is", "source", "defaults of the command line"):
        table.add_column(heading)
    for name, info in METHODS.items():
        recipe = RECIPES.get(name, Recipe())
        chosen = {"prior precision": recipe.prior_precision, "temperature": recipe.temperature}
        options = chosen | dict(recipe.options)
        table.add_row(name, info.summary, info.paper, ", ".join(f"{key} {value}" for key, value in options.items()))
    return table
