"""Runs of several contenders in one folder: how they are settled, interrupted and taken up again."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from vogn.cli.errors import InterruptedRunError, UsageError
from vogn.cli.interruption import Interruption
from vogn.cli.run_folder import RunFolder, new_path, read_json_object, versions
from vogn.cli.settings import Settings
from vogn.data.loading import absolute
from vogn.errors import CheckpointError, StoppedError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S = TypeVar("S", bound="DataclassInstance")


@dataclass(frozen=True)
class Command(Generic[S]):
    """A command whose runs can be resumed.

    Args:
        name: ``vogn NAME``, and the key of its settings in ``config.json``.
        kind: a dataclass of plain values and tuples, which checks them.
    """

    name: str
    kind: type[S]

    def settled(
        self,
        given: Mapping[str, Any],
        make: Callable[[dict[str, Any]], S],
        *,
        output: Path | None,
        resume: Path | None,
    ) -> tuple[S, RunFolder | None]:
        """The settings of a run, and its folder if it is there already.

        Args:
            given: what the command line gave; ``None`` for the others.
            make: from what was given to the settings of a new run.
            output: folder of a new run, if it has a name.
            resume: folder of a run to continue; excludes all else.

        Raises:
            UsageError: for settings beside ``resume``, and whatever ``make`` raises.
            CheckpointError: if the folder holds another kind of run.
        """
        chosen = {name: value for name, value in given.items() if value is not None}
        if resume is None:
            return make(chosen), None
        if output is not None or chosen:
            raise UsageError("--resume continues a run as it is: it excludes --output and all settings")
        folder = RunFolder.open(resume)
        return self.stored(read_json_object(folder.path / "config.json").get(self.name, {})), folder

    def stored(self, data: Mapping[str, Any]) -> S:
        """Undoes ``asdict`` after a passage through JSON.

        Raises:
            CheckpointError: if these are no such settings.
        """
        try:
            values = {field.name: data[field.name] for field in fields(self.kind)}
            return self.kind(**{name: tuple(x) if isinstance(x, list) else x for name, x in values.items()})
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"these are not the settings of a run of `vogn {self.name}`: {error}") from error

    def new_folder(self, settings: S, output: Path | None, *, data: str, suffix: str = "") -> RunFolder:
        """A folder with the settings in it, named after data and time if it has no name.

        Paths of data are stored absolute: the run can be continued from another folder.
        """
        folder = RunFolder.create(output or new_path(Settings(data=data), self.name, suffix=suffix))
        stored = asdict(settings)
        stored |= {"data": absolute(stored["data"])} if "data" in stored else {}
        folder.write_json("config.json", {self.name: stored, "versions": versions()})
        return folder

    @contextmanager
    def running(self, folder: RunFolder) -> Iterator[Running]:
        """Nobody else writes into the folder, and a signal stops the run where it can be taken up again."""
        with folder.locked(), Interruption() as interruption:
            yield Running(f"vogn {self.name} --resume {shlex.quote(str(folder.path))}", interruption)


@dataclass(frozen=True)
class Running:
    """A run that is under way.

    Args:
        again: the command that takes it up.
        interruption: notes signals.
    """

    again: str
    interruption: Interruption

    def should_stop(self) -> bool:
        """Whether a signal has come."""
        return self.interruption.signal_number is not None

    @contextmanager
    def contender(self, label: str) -> Iterator[None]:
        """One of the runs; where it stops, the way to continue is said.

        Raises:
            InterruptedRunError: after a signal.
        """
        try:
            yield
        except StoppedError as error:
            message = f"{label}: {error}. Continue with: {self.again}"
            raise InterruptedRunError(message, self.interruption.signal_number or 0) from error
