"""`vogn active`: acquisitions side by side on a pool, over several seeds, resumable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from vogn.active import ACQUISITIONS, ActiveLearner, ActiveResult, NaturalGradientMethod, progress_bar
from vogn.active.acquisition import LABELS, NUMBERS
from vogn.active.natural_gradient import PRIOR_METHODS, Mode
from vogn.active.recipes import RECIPES
from vogn.cli.errors import UsageError
from vogn.cli.plots import plot_labels
from vogn.cli.run_folder import RunFolder
from vogn.cli.screen import say
from vogn.cli.side_by_side import Command
from vogn.data import DataError, load_data
from vogn.data.npz import read_arrays
from vogn.likelihoods import Categorical, Gaussian, Likelihood
from vogn.models import mlp
from vogn.optim import METHODS

Arrays = tuple[Tensor, Tensor, Tensor, Tensor]
"""Inputs and targets of the pool, and of the test part."""


@dataclass(frozen=True)
class ActiveSettings:
    """What the command line fixes.

    Args:
        data: ``digits`` or ``npz:FILE``.
        target: ``labels``, or ``numbers``: the archive's ``y_train`` and ``y_test`` are real.
        method: key of :data:`vogn.METHODS`.
        update: see :class:`vogn.active.NaturalGradientMethod`.
        acquisitions: names in :data:`vogn.active.ACQUISITIONS`.
        seeds: runs of each acquisition, with the seeds 0, 1, ...
        initial, query, rounds: labels of the first and of every other query; trainings in all.
        steps, update_steps, batch_size, lr, prior_precision: of training; ``lr=None`` is the method's.
        noise: standard deviation of real targets, in standard deviations of the targets.
        samples: weight samples of predictions.
        hidden: widths of the perceptron's hidden layers.
        level: accuracy (or RMSE) for which the labels needed are counted; ``None``: 0.9 for labels, and none for
            numbers.

    Raises:
        UsageError: naming what is out of range.
    """

    data: str = "digits"
    target: str = LABELS
    method: str = "kfac"
    update: str = "continue"
    acquisitions: tuple[str, ...] = ("bald", "random")
    seeds: int = 3
    initial: int = 20
    query: int = 10
    rounds: int = 15
    steps: int = 300
    update_steps: int = 100
    batch_size: int = 64
    lr: float | None = None
    prior_precision: float = 1.0
    noise: float = 0.3
    samples: int = 32
    hidden: tuple[int, ...] = (100,)
    level: float | None = None

    def __post_init__(self) -> None:
        if self.target not in (LABELS, NUMBERS):
            raise UsageError(f"unknown target {self.target!r}; allowed are {LABELS}, {NUMBERS}")
        if self.target == NUMBERS and not self.data.startswith("npz:"):
            raise UsageError("--target numbers needs --data npz:FILE with the arrays x_train, y_train, x_test, y_test")
        if self.method not in METHODS:
            raise UsageError(f"unknown method {self.method!r}; allowed are {', '.join(METHODS)}")
        if self.update not in get_args(Mode):
            raise UsageError(f"unknown update {self.update!r}; allowed are {', '.join(get_args(Mode))}")
        if self.update == "prior" and self.method not in PRIOR_METHODS:
            raise UsageError(f"--update prior goes with {', '.join(PRIOR_METHODS)}")
        fitting = [name for name, info in ACQUISITIONS.items() if self.target in info.kinds]
        unknown = [name for name in self.acquisitions if name not in fitting]
        if unknown or not self.acquisitions:
            raise UsageError(
                f"unknown acquisitions {', '.join(unknown)}; allowed for {self.target} are {', '.join(fitting)}"
            )
        if len(set(self.acquisitions)) != len(self.acquisitions):
            raise UsageError(f"--acquisition names one twice: {', '.join(self.acquisitions)}")
        for name in ("seeds", "initial", "query", "rounds", "steps", "update_steps", "batch_size", "samples"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        for name in ("lr", "prior_precision", "noise"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} {value} must be a positive number")
        if not self.hidden or min(self.hidden) < 1:
            raise UsageError("--hidden needs widths of at least 1, such as 100,100")


ACTIVE = Command("active", ActiveSettings)


def active(
    given: Mapping[str, Any], *, output: Path | None, resume: Path | None, console: Console
) -> dict[str, list[ActiveResult]]:
    """Run every acquisition with every seed; a table, a plot and ``results.json`` at the end.

    Args:
        given: fields of :class:`ActiveSettings` that the command line gave; ``None`` for the others.
        output: folder of a new run; ``None`` makes a name.
        resume: folder of a run to continue; excludes all settings.
        console: where to write.

    Returns:
        Acquisition to one result for every seed.

    Raises:
        UsageError: for settings that do not fit.
        DataError: for data that cannot be used.
        InterruptedRunError: after a signal; every label and the state are written.
    """
    settings, folder = ACTIVE.settled(given, _new, output=output, resume=resume)
    arrays = arrays_of(settings)
    folder = folder or ACTIVE.new_folder(settings, output, data=settings.data, suffix=f"-{settings.method}")
    say(console, f"{settings.data}, a pool of {len(arrays[0])}, {settings.method}, in {folder.path}")
    results: dict[str, list[ActiveResult]] = {name: [] for name in settings.acquisitions}
    with ACTIVE.running(folder) as running:
        for name in settings.acquisitions:
            for seed in range(settings.seeds):
                label = f"{name}, seed {seed}"
                learner = learner_of(settings, arrays, name, seed, folder.path / name / f"seed_{seed}")
                with running.contender(label), progress_bar(settings.rounds, label) as watcher:
                    found = learner.run(settings.rounds, watcher=watcher, should_stop=running.should_stop)
                results[name].append(found)
            last = [run.curve(_metric(settings))[-1] for run in results[name]]
            say(console, f"{name}: {_metric(settings)} {np.mean(last):.4f} with {results[name][0].labels[-1]} labels")
    _report(settings, folder, results, console)
    return results


def _new(chosen: dict[str, Any]) -> ActiveSettings:
    """Settings of a new run.

    Raises:
        UsageError: if an option would do nothing.
    """
    settings = ActiveSettings(**chosen)
    if "noise" in chosen and settings.target == LABELS:
        raise UsageError("--noise goes with --target numbers")
    return settings


def arrays_of(settings: ActiveSettings) -> Arrays:
    """Pool and test part. Real targets are standardised by the pool, as their inputs are."""
    if settings.target == LABELS:
        data = load_data(settings.data, augment=False)
        return data.train.x.flatten(1), data.train.y, data.test.x.flatten(1), data.test.y
    path = settings.data.removeprefix("npz:")
    arrays = read_arrays(path)
    names = ("x_train", "y_train", "x_test", "y_test")
    missing = [name for name in names if name not in arrays]
    if missing:
        raise DataError(f"{path} has no array {missing[0]}; wanted: {', '.join(names)}")
    parts = [np.asarray(arrays[name], dtype=float).reshape(len(arrays[name]), -1) for name in names]
    for k, name in enumerate(names):
        if not len(parts[k]) or not np.isfinite(parts[k]).all():
            raise DataError(f"{path}: {name} is empty, or holds NaN or infinity")
    for x, y in (parts[:2], parts[2:]):
        if len(x) != len(y) or y.shape[1] != 1:
            raise DataError(f"{path}: {len(x)} inputs and targets of shape {y.shape}; one number per input is wanted")
    for k in (0, 1):
        mean, deviation = parts[k].mean(0), parts[k].std(0)
        deviation[deviation == 0.0] = 1.0
        parts[k], parts[k + 2] = (parts[k] - mean) / deviation, (parts[k + 2] - mean) / deviation
    return tuple(torch.from_numpy(part).float() for part in parts)  # type: ignore[return-value]


def learner_of(settings: ActiveSettings, arrays: Arrays, acquisition: str, seed: int, folder: Path) -> ActiveLearner:
    """A learner whose oracle is the data's own targets."""
    x, y, x_test, y_test = arrays
    labels = settings.target == LABELS
    options = dict(RECIPES.get(settings.method, {})) | ({} if settings.lr is None else {"lr": settings.lr})
    method = NaturalGradientMethod(
        settings.method,
        update=settings.update,  # type: ignore[arg-type]
        steps=settings.steps,
        update_steps=settings.update_steps,
        batch_size=settings.batch_size,
        prior_precision=settings.prior_precision,
        **options,
    )
    likelihood: Likelihood = Categorical() if labels else Gaussian(noise=settings.noise)
    outputs = int(max(y.max(), y_test.max())) + 1 if labels else 1
    return ActiveLearner(
        lambda: mlp((x.shape[1], *settings.hidden, outputs)),
        method,
        x,
        acquisition,
        likelihood=likelihood,
        oracle=lambda numbers, inputs: y[numbers],
        initial=settings.initial,
        query_size=settings.query,
        test=(x_test, y_test),
        samples=settings.samples,
        seed=seed,
        folder=folder,
    )


def _metric(settings: ActiveSettings) -> str:
    return "accuracy" if settings.target == LABELS else "rmse"


def _report(
    settings: ActiveSettings, folder: RunFolder, results: Mapping[str, list[ActiveResult]], console: Console
) -> None:
    content = {name: [run.to_dict() for run in runs] for name, runs in results.items()}
    folder.write_json("results.json", {"active": asdict(settings), "results": content})
    metric = _metric(settings)
    level = 0.9 if settings.level is None and metric == "accuracy" else settings.level
    plot_labels(results, metric, level, folder.path)
    labels = next(iter(results.values()))[0].labels[-1]
    table = Table(title=f"{settings.data}, {settings.method}: mean ± standard error over {settings.seeds} seeds")
    for heading in ("acquisition", f"{metric} with {labels} labels", "nll", f"mean {metric}"):
        table.add_column(heading, justify="left" if heading == "acquisition" else "right")
    if level is not None:
        table.add_column(f"labels for {metric} {level:g}", justify="right")
    for name, runs in results.items():
        cells = [_mean([run.curve(key)[-1] for run in runs]) for key in (metric, "nll")]
        cells.append(_mean([float(np.mean(run.curve(metric))) for run in runs]))
        if level is not None:
            needed = [run.labels_needed(metric, level) for run in runs]
            cells.append(", ".join("-" if count is None else str(count) for count in needed))
        table.add_row(name, *cells)
    console.print(table)
    say(console, f"Everything is in {folder.path}")


def _mean(values: list[float]) -> str:
    """With a standard error, of several."""
    text = f"{np.mean(values):.4f}"
    return text if len(values) == 1 else f"{text} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.4f}"
