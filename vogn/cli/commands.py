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
from vogn.cli.evaluation import Evaluation, entropy, evaluate, posterior, predictive
from vogn.cli.interruption import Interruption
from vogn.cli.plots import plot_learning_curves, plot_reliability
from vogn.cli.run_folder import RunFolder, new_path, write_atomically
from vogn.cli.screen import ProgressWatcher, results_table, say
from vogn.cli.session import Session, open_data, rehearse, resolve_device
from vogn.cli.settings import Settings, given_settings, resumed_settings
from vogn.cli.training import Training
from vogn.data import Data, load_inputs
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
    rivals = contenders(settings)
    device = resolve_device(settings.device)
    use_threads(settings.threads)
    data = open_data(settings)
    if resume is None:
        rehearse(settings, rivals[0], data)
        folder = RunFolder.create(output or new_path(settings, rivals[0].key))
    say(console, _headline(settings, data, device, folder))
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
    _report(settings, folder, rows, histories, console)
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

    The output holds ``probabilities`` ``(N, C)``, ``labels`` ``(N,)``, ``variance`` ``(N, C)`` of the probabilities
    between weight samples, ``entropy`` ``(N,)`` in nats, and ``class_names`` ``(C,)``.
    """
    session = load_session(run, device=device)
    x = session.data.preprocessing.apply(load_inputs(input_path), name=str(input_path))
    found = predictive(session, x, samples=samples or session.settings.samples)
    arrays: dict[str, Any] = {
        "probabilities": found.mean.cpu().numpy(),
        "labels": found.mean.argmax(dim=1).cpu().numpy(),
        "variance": found.variance.cpu().numpy(),
        "entropy": entropy(found.mean).cpu().numpy(),
        "class_names": np.asarray(session.data.class_names),
    }
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
    session = Session.start(settings, contenders(settings)[0], open_data(settings), folder)
    session.restore()
    if session.position.epoch == 0 and session.position.batch == 0:
        raise CheckpointError(f"{run} has not been trained yet")
    return session


def _save_posterior(session: Session) -> None:
    posterior(session).save(session.folder.path / "posterior.safetensors")


def _report(
    settings: Settings, folder: RunFolder, rows: list[Evaluation], histories: dict[str, Any], console: Console
) -> None:
    folder.write_json("results.json", {"test": [row.to_dict() for row in rows]})
    plot_learning_curves(histories, folder.path / "learning_curves.png")
    plot_reliability(rows, folder.path / "reliability.png")
    console.print(results_table(rows, f"{settings.data}, test part, {len(rows[0].targets)} examples"))
    say(console, f"Everything is in {folder.path}")


def _headline(settings: Settings, data: Data, device: torch.device, folder: RunFolder) -> str:
    sizes = f"{len(data.train)} / {len(data.validation)} / {len(data.test)} examples"
    where = f"on {device}, in {folder.path}"
    return f"{settings.data}: {sizes} (train / validation / test), {data.num_classes} classes, {where}"


__all__ = ["InterruptedRunError", "load_session", "predict_file", "train"]
