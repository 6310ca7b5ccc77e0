"""The labels that were paid for: one line each, on disk before anything else happens."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from vogn.active.labels import Label
from vogn.errors import CheckpointError


class Ledger:
    """Labels by number of the example, in memory and, with a path, in a file of JSON lines.

    A line is flushed to disk when it is added. A last line that a crash cut short is dropped when the file is read.

    Args:
        path: of the file; ``None`` keeps nothing.

    Raises:
        CheckpointError: if the file holds something else than labels.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._labels: dict[int, Label] = {}
        if path is not None and path.is_file():
            self._read(path)

    def __contains__(self, index: int) -> bool:
        return index in self._labels

    def __getitem__(self, index: int) -> Label:
        return self._labels[index]

    def __iter__(self) -> Iterator[int]:
        return iter(self._labels)

    def __len__(self) -> int:
        return len(self._labels)

    def add(self, index: int, label: Label) -> None:
        """Keep a checked label of an example that has none."""
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps({"index": index, "label": label}) + "\n")
                file.flush()
                os.fsync(file.fileno())
        self._labels[index] = label

    def _read(self, path: Path) -> None:
        text = path.read_text()
        whole, newline, rest = text.rpartition("\n")
        if rest:
            with path.open("r+") as file:
                file.truncate(len((whole + newline).encode()))
        for number, line in enumerate(whole.splitlines(), 1):
            try:
                entry = json.loads(line)
                self._labels[int(entry["index"])] = entry["label"]
            except (ValueError, KeyError, TypeError) as error:
                raise CheckpointError(
                    f"{path}, line {number} is no label: {line[:60]!r}; mend or delete the line"
                ) from error
