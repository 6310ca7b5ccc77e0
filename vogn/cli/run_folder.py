"""The folder of one run: settings, progress, checkpoint, temperature of prediction, results and pictures.

Every file but ``metrics.jsonl`` is replaced in one step, so that a reader never sees half a file; rows of
``metrics.jsonl`` that are newer than the checkpoint are dropped when a run goes on.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import pickle
import platform
import re
import shlex
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import torch

from vogn.cli.errors import UsageError
from vogn.cli.settings import Settings
from vogn.errors import CheckpointError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

SCHEMA_VERSION = 1
"""Version of what a run folder holds; raised when an older reader could misread it."""

_PACKAGES = ("vogn", "torch", "numpy", "scikit-learn")


class RunFolder:
    """Reads and writes the files of one run.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, *, resumable: bool = True) -> RunFolder:
        """A new folder, parents included.

        Args:
            path: the folder.
            resumable: whether the command has a ``--resume``.

        Raises:
            UsageError: it exists and is not empty, cannot be made, or cannot be written into.
        """
        try:
            occupied = path.exists() and (not path.is_dir() or any(path.iterdir()))
            if not occupied:
                path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"cannot create {path}: {error.strerror}") from error
        if occupied:
            continued = f", or continue that run with --resume {shlex.quote(str(path))}" if resumable else ""
            raise UsageError(f"{path} exists already; give another --output{continued}")
        if not os.access(path, os.W_OK | os.X_OK):
            raise UsageError(f"{path} cannot be written into: change its permissions, or give another --output")
        return cls(path)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from training in this folder; the lock ends with the process, however that ends.

        Raises:
            UsageError: another process has the lock.
        """
        if fcntl is None:  # no such locks on this system
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise UsageError(f"another process is training in {self.path}; wait for it, or stop it") from error
            except OSError:  # a file system without locks
                pass
            yield
        finally:
            os.close(handle)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            CheckpointError: there is no run there.
        """
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{path} is not a run folder: it has no config.json")
        return cls(path)

    def child(self, name: str) -> RunFolder:
        """The folder of a run that belongs to this one."""
        path = self.path / name
        path.mkdir(exist_ok=True)
        return RunFolder(path)

    @property
    def checkpoint_path(self) -> Path:
        """Where the checkpoint is."""
        return self.path / "checkpoint.pt"

    @property
    def metrics_path(self) -> Path:
        """Where the metrics are, one JSON object per epoch."""
        return self.path / "metrics.jsonl"

    def write_config(self, settings: Settings, resolved: Mapping[str, Any]) -> None:
        """Write ``config.json``: the settings, what they resolved to, and versions."""
        config = {
            "schema": SCHEMA_VERSION,
            "settings": settings.to_dict(),
            "resolved": dict(resolved),
            "versions": versions(),
        }
        self.write_json("config.json", config)

    def read_settings(self) -> Settings:
        """The settings in ``config.json``.

        Raises:
            CheckpointError: unreadable, or written by another schema version.
        """
        path = self.path / "config.json"
        try:
            config = json.loads(path.read_text())
            schema = config["schema"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is not the configuration of a run: {error}") from error
        _check_schema(path, schema)
        try:
            return Settings.from_dict(config["settings"])
        except (KeyError, TypeError, UsageError) as error:
            raise CheckpointError(f"{path} does not hold the settings of a run: {error}") from error

    def read_prediction(self) -> dict[str, Any] | None:
        """What is in ``prediction.json``: the temperature of prediction and how it was found; ``None`` if not there.

        Raises:
            CheckpointError: the file is damaged.
        """
        path = self.path / "prediction.json"
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text())
            temperature = float(content["temperature"])
            if not 0.0 < temperature < math.inf:
                raise ValueError(f"temperature {temperature}")
            return {"temperature": temperature, "position": dict(content["position"])}
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}); delete it to have it made again") from error

    def write_json(self, name: str, value: Any) -> None:
        """Write one JSON file atomically."""
        text = json.dumps(value, indent=2) + "\n"
        write_atomically(self.path / name, lambda file: file.write(text.encode()))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """Add one row to ``metrics.jsonl``."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(dict(row)) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows up to the first that is damaged, as a last line cut short by a crash is."""
        if not self.metrics_path.exists():
            return []
        rows = []
        for line in self.metrics_path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not isinstance(row, dict) or type(row.get("epoch")) is not int:
                break
            rows.append(row)
        return rows

    def drop_metrics_from(self, epoch: int) -> None:
        """Keep the rows of epochs 1 .. ``epoch`` only."""
        kept = [row for row in self.read_metrics() if row["epoch"] <= epoch]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        write_atomically(self.metrics_path, lambda file: file.write(text.encode()))

    def save_checkpoint(self, payload: Mapping[str, Any]) -> None:
        """Replace ``checkpoint.pt``."""
        content = {"schema": SCHEMA_VERSION, **payload}
        write_atomically(self.checkpoint_path, lambda file: torch.save(content, file))

    def load_checkpoint(self, device: torch.device) -> dict[str, Any]:
        """Read ``checkpoint.pt`` without unpickling code.

        Raises:
            CheckpointError: missing, damaged, not a checkpoint, or of another schema version.
        """
        path = self.checkpoint_path
        if not path.is_file():
            raise CheckpointError(f"{self.path} has no checkpoint.pt: the run had not reached its first checkpoint")
        try:
            _verify_checksums(path)
            content = torch.load(path, map_location=device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile, ValueError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise CheckpointError(f"{path} is damaged or is not a checkpoint: {reason[0]}") from error
        if not isinstance(content, dict) or "schema" not in content:
            raise CheckpointError(f"{path} is not a checkpoint of `vogn train`: it has no schema version")
        _check_schema(path, content["schema"])
        return content


def new_path(settings: Settings, contender: str, *, suffix: str = "") -> Path:
    """A folder in ``runs`` that is not there yet, named after data, contender and time; a second's runs are numbered.

    Args:
        settings: of the run.
        contender: its key.
        suffix: follows the contender.
    """
    data = re.sub(r"[^A-Za-z0-9]+", "-", Path(settings.data.partition(":")[2] or settings.data).stem).strip("-")
    name = f"{data}-{contender}{suffix}-{time.strftime('%Y%m%d-%H%M%S')}"
    candidates = (Path("runs") / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
    return next(path for path in candidates if not path.exists())


def write_atomically(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Write to a neighbouring temporary file, flush it to disk, then put it in place in one step."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: unreadable, or no object.
    """
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} does not hold a JSON object")
    return content


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _PACKAGES}}


def _verify_checksums(path: Path) -> None:
    """Raise ``BadZipFile`` where a byte of the archive has changed; :func:`torch.load` does not look."""
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    if damaged is not None:
        raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")


def _check_schema(path: Path, schema: Any) -> None:
    if schema != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path} has schema version {schema}, this version of vogn reads {SCHEMA_VERSION}; "
            "use the version of vogn that wrote it (config.json names it)"
        )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
