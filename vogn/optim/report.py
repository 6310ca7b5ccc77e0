"""Rows that print as a table: plain text by ``str()``, a ``rich`` table on a rich console."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

Cell = Callable[[Mapping[str, Any]], str]


class Report(list[dict[str, Any]]):
    """A list of dictionaries with a printed form.

    Class attributes:
        COLUMNS: header to the text of a row's cell.
        RIGHT: headers of right-aligned columns.

    Attributes:
        title: the line above the table.
        remarks: lines below it.
    """

    COLUMNS: ClassVar[Mapping[str, Cell]] = {}
    RIGHT: ClassVar[frozenset[str]] = frozenset()

    title: str = ""
    remarks: tuple[str, ...] = ()

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Headers and texts; columns that are empty in every row are left out."""
        texts = [[cell(row) for cell in self.COLUMNS.values()] for row in self]
        used = [any(text[k] for text in texts) for k in range(len(self.COLUMNS))]
        headers = [header for header, keep in zip(self.COLUMNS, used, strict=True) if keep]
        return headers, [[text for text, keep in zip(line, used, strict=True) if keep] for line in texts]

    def __str__(self) -> str:
        """The table as text."""
        headers, texts = self.cells()
        widths = [max(len(line[k]) for line in (headers, *texts)) for k in range(len(headers))]
        lines = [
            "  ".join(
                cell.rjust(width) if header in self.RIGHT else cell.ljust(width)
                for header, cell, width in zip(headers, line, widths, strict=True)
            ).rstrip()
            for line in (headers, ["-" * width for width in widths], *texts)
        ]
        return "\n".join([*([self.title] if self.title else []), *lines, *self.remarks])

    def __rich__(self) -> Any:
        """The table for a rich console."""
        from rich.box import SIMPLE
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        headers, texts = self.cells()
        table = Table(title=self.title or None, box=SIMPLE, padding=(0, 1, 0, 0))
        for header in headers:
            justify: Literal["left", "right"] = "right" if header in self.RIGHT else "left"
            table.add_column(header, justify=justify, overflow="fold", no_wrap=header in self.RIGHT)
        for line in texts:
            table.add_row(*(Text(cell) for cell in line))
        return Group(table, *(Text(remark) for remark in self.remarks))


def amount(number: float) -> str:
    """Three digits and a metric prefix: ``12345`` is ``"12.3k"``."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.3g}{prefix}"
    return f"{number:.3g}"
