"""``vogn evaluate``: a stored run measured beside those that it was trained with, on known, other and worse inputs."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from vogn.cli.commands import load_session
from vogn.cli.contenders import contenders
from vogn.cli.errors import UsageError
from vogn.cli.evaluation import predictor
from vogn.cli.run_folder import RunFolder, versions, write_atomically
from vogn.cli.screen import MeasuringBar, figure_tables, say
from vogn.cli.session import Session
from vogn.cli.settings import Settings, reads_image_files
from vogn.data import Data, RealData, Split, load_other
from vogn.report import (
    Measurements,
    Predictor,
    difference_table,
    drawings,
    figures_table,
    html,
    measure,
    ood_table,
    shift_table,
)

PARTS = ("test", "validation", "train")


def evaluate_run(
    run: Path,
    *,
    data: str | None,
    part: str,
    samples: int | None,
    device: str | None,
    ood: Sequence[str],
    shift: bool,
    report: bool,
    bootstrap: int,
    output: Path | None,
    console: Console,
) -> Measurements:
    """Measure a stored run, and what it was compared with, on one part of its own or of other data.

    The folder gets ``metrics.json``, a PNG for every picture and, with ``report``, ``report.html``.

    Args:
        run: folder of the run.
        data: another data set with the same classes or kind of numbers; ``None`` for the run's own.
        part: ``"test"``, ``"validation"`` or ``"train"``.
        samples: weight samples of the posterior predictive; ``None`` as in the run.
        device: where to run; ``None`` as in the run.
        ood: descriptions of data of any other kind, see :func:`vogn.data.load_other`.
        shift: whether to make the images worse.
        report: whether to write the page.
        bootstrap: replicates of the intervals; 0 for none.
        output: folder for what is written; ``None`` for ``evaluation`` in that of the run.
        console: where to write.

    Raises:
        UsageError, DataError, CheckpointError: for bad input.
    """
    if part not in PARTS:
        raise UsageError(f"unknown part {part!r}; allowed are {', '.join(PARTS)}")
    if bootstrap < 0 or bootstrap == 1:
        raise UsageError(f"--bootstrap is {bootstrap}; it must be 0 for no intervals, or at least 2")
    if repeated := {spec for spec in ood if list(ood).count(spec) > 1}:
        raise UsageError(f"--ood {repeated.pop()} is given more than once")
    session = load_session(run, device=device)
    spec = data or session.settings.data
    split: Split = getattr(_other_data(session, data) if data else session.data, part)
    if len(split) == 0:
        raise UsageError(f"{spec} has no {part} part")
    others = {name: load_other(name, session.data.preprocessing) for name in ood}
    worse = session.task.shift(split) if shift else None
    folder = output or run / "evaluation"
    if folder.resolve() == run.resolve():
        raise UsageError("--output is the folder of the run, which has pictures of its own; give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    sessions = [session, *_companions(session, console)]
    for each in sessions:
        if each.position.epoch < session.settings.epochs:
            epochs = f"{each.position.epoch} of {session.settings.epochs} epochs"
            say(console, f"{each.contender.label} has been trained for {epochs} so far")
    predictors, reference = _predictors(sessions, samples or session.settings.samples)
    with MeasuringBar(console) as bar:
        found = measure(
            predictors,
            split.x,
            session.task.targets(split),
            outside={name: x for name, (x, _) in others.items()},
            shift=worse,
            bootstrap=bootstrap,
            reference=reference,
            progress=bar,
        )
    changes = {name: list(done) for name, (_, done) in others.items()}
    for name, done in changes.items():
        if done:
            say(console, f"{name}: {', '.join(done)}")
    _print(found, f"{spec}, {part} part, {len(split)} examples", console)
    facts = {"run": str(run), "data": spec, "part": part, "command": f"vogn {shlex.join(sys.argv[1:])}"}
    _write(RunFolder(folder), found, sessions, facts, changes, page=report)
    say(console, f"Everything is in {folder}")
    return found


def _other_data(session: Session, spec: str) -> Data | RealData:
    size = session.settings.image_size if reads_image_files(spec) else None
    return session.task.other(Settings(data=spec, image_size=size, augment=False))


def _companions(session: Session, console: Console) -> list[Session]:
    """The runs that were trained beside it, as far as they are there."""
    found = []
    for contender in contenders(session.settings, session.task.recipe)[1:]:
        path = session.folder.path / f"compare-{contender.key}"
        if not (path / "checkpoint.pt").is_file():
            say(console, f"{contender.label} has not been trained: there is no {path / 'checkpoint.pt'}")
            continue
        other = Session.start(session.settings, contender, session.data, RunFolder(path))
        other.restore()
        found.append(other)
    return found


def _predictors(sessions: Sequence[Session], samples: int) -> tuple[dict[str, Predictor], str]:
    """Label to predictor, in the order of the table of training, and the label of the posterior predictive."""
    first = sessions[0]
    reference = f"{first.contender.label}, {samples} samples"
    found: dict[str, Predictor] = {f"{first.contender.label}, mean": predictor(first, samples=None)}
    found[reference] = predictor(first, samples=samples)
    found |= {f"{other.contender.label}, mean": predictor(other, samples=None) for other in sessions[1:]}
    return found, reference


def _print(found: Measurements, title: str, console: Console) -> None:
    tables = [(title, figures_table(found))]
    differences = difference_table(found)
    if differences is not None:
        tables.append(("on the same examples; intervals at 95 %", differences))
    tables += [(f"AUROC, {each.name}, {each.count} inputs", ood_table(each)) for each in found.outside if each.reports]
    for figure, name in (("accuracy", "accuracy"), ("ece", "ECE")):
        table = shift_table(found, figure)
        if table is not None and found.shift is not None:
            tables.append((f"{name} under corruption, {found.shift.count} images, mean over the kinds", table))
    for each in found.outside:
        if not each.reports:
            say(console, f"{each.name}: no score of these predictors varies, so there is nothing to tell it apart by")
    for heading, table in tables:
        for part in figure_tables(table, heading, console.width):
            console.print(part)


def _write(
    folder: RunFolder,
    found: Measurements,
    sessions: Sequence[Session],
    facts: dict[str, str],
    changes: dict[str, list[str]],
    *,
    page: bool,
) -> None:
    _remove_previous(folder.path)
    histories = {session.contender.label: session.folder.read_metrics() for session in sessions}
    pictures = drawings(found, histories)
    names = [f"{drawing.name}.png" for drawing in pictures]
    record: dict[str, Any] = {**facts, "versions": versions(), "changes": changes, "pictures": names}
    folder.write_json("metrics.json", record | found.to_dict())
    for drawing, name in zip(pictures, names, strict=True):
        _write_bytes(folder.path / name, drawing.png())
    if not page:
        return
    session = sessions[0]
    settings: Settings = session.settings
    about = {
        **facts,
        "examples": str(found.count),
        "model": f"{session.spec.name}, {sum(p.numel() for p in session.model.parameters())} parameters",
        "trained": f"{session.position.epoch} epochs on {len(session.data.train)} examples, seed {settings.seed}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        **{f"changes to {name}": ", ".join(done) for name, done in changes.items() if done},
    }
    details = json.dumps({"settings": settings.to_dict(), "resolved": session.resolved()}, indent=2)
    title = f"{session.contender.label} on {facts['data']}"
    text = html(found, title=title, facts=about, histories=histories, details=details, pictures=pictures)
    _write_bytes(folder.path / "report.html", text.encode())


def _remove_previous(folder: Path) -> None:
    """Take away the pictures and the page of an earlier evaluation, which this one may not have."""
    try:
        names = json.loads((folder / "metrics.json").read_text())["pictures"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in [*names, "report.html"]:
        if isinstance(name, str) and Path(name).name == name and name.endswith((".png", ".html")):
            (folder / name).unlink(missing_ok=True)


def _write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
