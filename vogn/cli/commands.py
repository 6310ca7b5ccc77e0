"""What the commands do, without their command-line clothes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from vogn.cli.contenders import check_method, contenders
from vogn.cli.errors import InterruptedRunError, UsageError
from vogn.cli.evaluation import evaluate, posterior, predictive
from vogn.cli.interruption import Interruption
from vogn.cli.plots import plot_learning_curves, save_figure
from vogn.cli.run_folder import RunFolder, new_path, write_atomically
from vogn.cli.screen import ProgressWatcher, results_table, say
from vogn.cli.session import Session, open_data, rehearse, resolve_device
from vogn.cli.settings import Settings, given_settings, resumed_settings
from vogn.cli.task import Evaluation, Task
from vogn.cli.tasks import task_of
from vogn.cli.training import Training
from vogn.data import load_inputs
from vogn.errors import CheckpointError


def train(given: Mapping[str, Any], *, output: Path | None, resume: Path | None, console: Console) -> list[Evaluation]:
    """Start or continue a run and everything it is compared with.

    Args:
        given: settings that the command line gave, by field of :class:`Settings`; ``None`` for the others.
        output: folder of a new run; ``None`` makes a name.
        resume: folder of the run to continue; excludes ``output``.
        console: where to write.

    Returns:
        The rows of the final table.
    """
    if resume is not None:
        if output is not None:
            raise UsageError("--resume excludes --output: a run goes on in its own folder")
        folder = RunFolder.open(resume)
        settings = resumed_settings(folder.read_settings(), given, where=str(resume))
    else:
        settings = given_settings(given)
    check_method(settings.method)
    device = resolve_device(settings.device)
    use_threads(settings.threads)
    data = open_data(settings)
    task = task_of(data)
    if resume is None:
        settings = task.settled(settings, given)
    rivals = contenders(settings, task.recipe)
    if resume is None:
        rehearse(settings, rivals[0], data)
        folder = RunFolder.create(output or new_path(settings, rivals[0].key))
    say(console, _headline(settings, task, device, folder))
    if data.remark:
        say(console, data.remark)
    rows: list[Evaluation] = []
    histories = {}
    with folder.locked(), Interruption() as interruption:
        for number, contender in enumerate(rivals):
            own_folder = folder if number == 0 else folder.child(f"compare-{contender.key}")
            session = Session.start(settings, contender, data, own_folder)
            if own_folder.checkpoint_path.exists():
                session.restore()
            else:
                own_folder.write_config(settings, session.resolved())
            with ProgressWatcher(console, contender.label) as watcher:
                Training(session, watcher, interruption, f"vogn train --resume {shlex.quote(str(folder.path))}").run()
            rows += evaluate(session, data.test, samples=settings.samples, with_posterior=number == 0)
            histories[contender.label] = own_folder.read_metrics()
            if number == 0:
                _save_posterior(session)
    _report(settings, task, folder, rows, histories, console)
    return rows


def use_threads(threads: int | None) -> None:
    """Run with that many CPU threads, restarting the program if need be.

    The number is given to OpenMP before PyTorch is loaded: raising it afterwards with ``torch.set_num_threads`` makes
    batched LU factorisations of some MKL builds fail or, worse, silently wrong.

    Raises:
        UsageError: the number cannot be had.
    """
    if threads is None or torch.get_num_threads() == threads:
        return
    if os.environ.get("OMP_NUM_THREADS") == str(threads):
        raise UsageError(f"--threads {threads} cannot be had: PyTorch uses {torch.get_num_threads()} threads here")
    os.environ["OMP_NUM_THREADS"] = str(threads)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "vogn.cli", *sys.argv[1:]])


def predict_file(
    run: Path, *, input_path: Path, output_path: Path, samples: int | None, device: str | None, console: Console
) -> None:
    """Write the posterior predictive for the inputs of an archive.

    What the output holds: see :meth:`vogn.cli.classification.Classification.arrays` and
    :meth:`vogn.cli.regression.Regression.arrays`.
    """
    session = load_session(run, device=device)
    x = session.data.preprocessing.apply(load_inputs(input_path), name=str(input_path))
    found = predictive(session, x, samples=samples or session.settings.samples)
    arrays: dict[str, Any] = session.task.arrays(found)
    try:
        write_atomically(output_path, lambda file: np.savez(file, **arrays))
    except OSError as error:
        raise UsageError(f"cannot write {output_path}: {error.strerror}") from error
    say(console, f"{len(x)} predictions written to {output_path}")


def load_session(run: Path, *, device: str | None) -> Session:
    """A stored run with its data, at its checkpoint."""
    folder = RunFolder.open(run)
    settings = resumed_settings(folder.read_settings(), {"device": device}, where=str(run))
    check_method(settings.method)
    data = open_data(settings)
    session = Session.start(settings, contenders(settings, task_of(data).recipe)[0], data, folder)
    session.restore()
    if session.position.epoch == 0 and session.position.batch == 0:
        raise CheckpointError(f"{run} has not been trained yet")
    return session


def _save_posterior(session: Session) -> None:
    posterior(session).save(session.folder.path / "posterior.safetensors")


def _report(
    settings: Settings,
    task: Task[Any],
    folder: RunFolder,
    rows: list[Evaluation],
    histories: dict[str, Any],
    console: Console,
) -> None:
    folder.write_json("results.json", {"test": [row.to_dict() for row in rows]})
    plot_learning_curves(histories, folder.path / "learning_curves.png")
    for name, figure in task.pictures(rows, task.data.test.x).items():
        save_figure(figure, folder.path / name)
    title = f"{settings.data}, test part, {len(rows[0].targets)} examples"
    console.print(results_table(rows, task.COLUMNS, title))
    say(console, f"Everything is in {folder.path}")


def _headline(settings: Settings, task: Task[Any], device: torch.device, folder: RunFolder) -> str:
    data = task.data
    sizes = f"{len(data.train)} / {len(data.validation)} / {len(data.test)} examples"
    where = f"on {device}, in {folder.path}"
    return f"{settings.data}: {sizes} (train / validation / test), {task.headline()}, {where}"


__all__ = ["InterruptedRunError", "load_session", "predict_file", "train"]
