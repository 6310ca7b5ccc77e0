"""`vogn continual`: methods side by side on a sequence of tasks, resumable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from vogn.cli.errors import UsageError
from vogn.cli.plots import plot_tasks
from vogn.cli.run_folder import RunFolder
from vogn.cli.screen import say
from vogn.cli.side_by_side import Command
from vogn.continual import (
    BATCHNORM_POLICIES,
    CONTINUAL_METHODS,
    SCENARIOS,
    BatchNormPolicy,
    ContinualMethod,
    ContinualResult,
    MultiHead,
    Task,
    adam,
    permuted_tasks,
    progress_bar,
    run_tasks,
    split_tasks,
)
from vogn.data import load_data
from vogn.likelihoods import Categorical
from vogn.models import mlp, small_convolutional


@dataclass(frozen=True)
class Benchmark:
    """What a name on the command line stands for.

    Args:
        kind: ``"permuted"`` or ``"split"``.
        data: where the examples come from; ``""``: ``--data`` has to say it.
        images: whether the network is convolutional and takes images ``(C, H, W)``; else it is a perceptron.
        defaults: of settings that differ from those of :class:`ContinualSettings`.
    """

    kind: Literal["permuted", "split"]
    data: str
    images: bool = False
    defaults: Mapping[str, Any] = field(default_factory=dict)


_MNIST: dict[str, Any] = {"epochs": 10, "batch_size": 128}
BENCHMARKS: dict[str, Benchmark] = {
    "permuted-digits": Benchmark("permuted", "digits"),
    "split-digits": Benchmark("split", "digits"),
    "permuted-mnist": Benchmark("permuted", "", defaults=_MNIST | {"tasks": 10}),
    "split-mnist": Benchmark("split", "", defaults=_MNIST | {"hidden": (256, 256)}),
    "split-cifar10": Benchmark("split", "", images=True, defaults={"epochs": 10, "scenario": "task"}),
}
"""Name to benchmark."""
NORMS = ("frn", "group", "batch")


@dataclass(frozen=True)
class ContinualSettings:
    """What the command line fixes.

    Args:
        benchmark: name in :data:`BENCHMARKS`.
        methods: names in :data:`vogn.continual.CONTINUAL_METHODS`.
        data: ``digits`` or ``npz:FILE``; its classes are permuted or split.
        scenario: ``task``, ``domain`` or ``class``.
        examples: training examples that are used, evenly spaced in the data; 0 is all of them.
        tasks: number of permutations.
        classes_per_task: of a split.
        epochs, batch_size, seed: of every run.
        lr: learning rate; ``None`` is the method's (Adam: 1e-3).
        strength: of penalties and priors; ``None`` is that of the recipes in :class:`vogn.continual.ContinualInfo`.
        hidden: widths of the perceptron's hidden layers.
        norm: of the convolutional network: ``frn``, ``group`` or ``batch``.
        batchnorm: see :func:`vogn.continual.run_tasks`.
        checkpoint_every: batches.

    Raises:
        UsageError: naming what is out of range.
    """

    benchmark: str = "permuted-digits"
    methods: tuple[str, ...] = ("finetune", "ewc", "vcl", "vcl-kfac", "kronecker", "replay")
    data: str = "digits"
    scenario: str = "domain"
    examples: int = 0
    tasks: int = 5
    classes_per_task: int = 2
    epochs: int = 20
    batch_size: int = 64
    lr: float | None = None
    strength: float | None = None
    hidden: tuple[int, ...] = (100, 100)
    norm: str = "frn"
    batchnorm: str = "running"
    seed: int = 0
    checkpoint_every: int = 200

    def __post_init__(self) -> None:
        if self.benchmark not in BENCHMARKS:
            raise UsageError(f"unknown benchmark {self.benchmark!r}; allowed are {', '.join(BENCHMARKS)}")
        if not self.data:
            raise UsageError(
                f"{self.benchmark} comes without its examples: --data npz:FILE, an archive with the arrays x_train, "
                "y_train, x_test and y_test"
            )
        for name, allowed in (("scenario", SCENARIOS), ("norm", NORMS), ("batchnorm", BATCHNORM_POLICIES)):
            if getattr(self, name) not in allowed:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; allowed are {', '.join(allowed)}")
        if self.scenario == "class" and self.kind == "permuted":
            raise UsageError("permuted tasks share their classes: --scenario domain or task")
        unknown = [name for name in self.methods if name not in CONTINUAL_METHODS]
        if unknown or not self.methods:
            raise UsageError(f"unknown methods {', '.join(unknown)}; allowed are {', '.join(CONTINUAL_METHODS)}")
        if len(set(self.methods)) != len(self.methods):
            raise UsageError(f"--method names one twice: {', '.join(self.methods)}")
        for name in ("tasks", "epochs", "batch_size", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.classes_per_task < 2:
            raise UsageError(f"--classes-per-task {self.classes_per_task} must be at least 2")
        for name in ("seed", "examples"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least 0")
        if not self.hidden or min(self.hidden) < 1:
            raise UsageError("--hidden needs widths of at least 1, such as 100,100")
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise UsageError(f"--lr {self.lr} must be a positive number")
        if self.strength is not None and not 0 <= self.strength < float("inf"):
            raise UsageError(f"--strength {self.strength} must be a number >= 0")

    @property
    def kind(self) -> str:
        """``"permuted"`` or ``"split"``."""
        return BENCHMARKS[self.benchmark].kind

    @property
    def images(self) -> bool:
        """Whether the network is convolutional."""
        return BENCHMARKS[self.benchmark].images


CONTINUAL = Command("continual", ContinualSettings)


def continual(
    given: Mapping[str, Any], *, output: Path | None, resume: Path | None, console: Console
) -> dict[str, ContinualResult]:
    """Run every method over the tasks; a table, plots and ``results.json`` at the end.

    Args:
        given: fields of :class:`ContinualSettings` that the command line gave; ``None`` for the others.
        output: folder of a new run; ``None`` makes a name.
        resume: folder of a run to continue; excludes all settings.
        console: where to write.

    Returns:
        Method to result.

    Raises:
        UsageError: for settings that do not fit.
        InterruptedRunError: after a signal; checkpoints are written.
    """
    settings, folder = CONTINUAL.settled(given, _new, output=output, resume=resume)
    tasks = tasks_of(settings)
    folder = folder or CONTINUAL.new_folder(settings, output, data=settings.data, suffix=f"-{settings.kind}")
    say(console, f"{settings.benchmark}, {len(tasks)} tasks, scenario {settings.scenario}, in {folder.path}")
    results: dict[str, ContinualResult] = {}
    with CONTINUAL.running(folder) as running:
        for name in settings.methods:
            method = method_of(settings, name, tasks)
            with running.contender(name), progress_bar(len(tasks), name) as watcher:
                results[name] = run_tasks(
                    method,
                    tasks,
                    epochs=settings.epochs,
                    batch_size=settings.batch_size,
                    seed=settings.seed,
                    folder=folder.path / name,
                    batchnorm=cast(BatchNormPolicy, settings.batchnorm),
                    checkpoint_every=settings.checkpoint_every,
                    watcher=watcher,
                    should_stop=running.should_stop,
                )
            say(console, f"{name}: average accuracy {results[name].metrics['average_accuracy']:.4f}")
    _report(settings, folder, results, console)
    return results


def _new(chosen: dict[str, Any]) -> ContinualSettings:
    """Settings of a new run: the benchmark's own where nothing was given."""
    benchmark = BENCHMARKS.get(str(chosen.get("benchmark", ContinualSettings.benchmark)))
    defaults = {} if benchmark is None else {"data": benchmark.data} | dict(benchmark.defaults)
    settings = ContinualSettings(**defaults | chosen)
    _check_used(settings, chosen)
    return settings


def _check_used(settings: ContinualSettings, chosen: Mapping[str, Any]) -> None:
    """No option was given that would do nothing.

    Raises:
        UsageError: naming it.
    """
    permuted = settings.kind == "permuted"
    if "tasks" in chosen and not permuted:
        raise UsageError("--tasks goes with permuted benchmarks; a split has as many as --classes-per-task makes")
    if "classes_per_task" in chosen and permuted:
        raise UsageError("--classes-per-task goes with split benchmarks")
    for name in ("norm", "batchnorm"):
        if name in chosen and not settings.images:
            raise UsageError(f"--{name} goes with split-cifar10, whose network has norms; a perceptron has none")
    if "hidden" in chosen and settings.images:
        raise UsageError("--hidden goes with perceptrons; the network of split-cifar10 is convolutional")
    if "batchnorm" in chosen and settings.norm != "batch":
        raise UsageError("--batchnorm goes with --norm batch; other norms keep no statistics")
    if "strength" in chosen and not any(CONTINUAL_METHODS[name].strength for name in settings.methods):
        raise UsageError(f"--strength goes with penalties and priors; {', '.join(settings.methods)} have none")


def tasks_of(settings: ContinualSettings) -> list[Task]:
    """The tasks of a benchmark. The split of the data has its own fixed seed: runs share a test set.

    Raises:
        UsageError: if there are fewer training examples than asked for, or the benchmark needs images and has none.
        DataError: for data that cannot be read or make no tasks.
    """
    data = load_data(settings.data, augment=False)
    count = settings.examples or len(data.train.x)
    if count > len(data.train.x):
        raise UsageError(f"--examples {count}: {settings.data} has {len(data.train.x)} for training")
    chosen = torch.arange(count) * len(data.train.x) // count
    x, y, tested = data.train.x[chosen], data.train.y[chosen], data.test.x
    if settings.images and x.ndim != 4:
        raise UsageError(f"{settings.benchmark} needs images; {settings.data} has inputs of shape {tuple(x.shape[1:])}")
    if not settings.images:
        x, tested = x.flatten(1), tested.flatten(1)
    arrays = (x, y, tested, data.test.y)
    scenario: Any = settings.scenario
    if settings.kind == "permuted":
        return permuted_tasks(*arrays, tasks=settings.tasks, scenario=scenario, seed=settings.seed)
    return split_tasks(*arrays, per_task=settings.classes_per_task, scenario=scenario)


def method_of(settings: ContinualSettings, name: str, tasks: list[Task]) -> ContinualMethod:
    """The method on a new network, the same for all methods."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = _network(settings, tasks)
    info = CONTINUAL_METHODS[name]
    options = dict(info.recipe)
    if BENCHMARKS[settings.benchmark].data != "digits":
        options |= info.image_recipe
    if info.penalised:
        options["optimizer"] = adam(settings.lr or 1e-3)
    elif settings.lr is not None:
        options["lr"] = settings.lr
    if settings.strength is not None and info.strength:
        options[info.strength] = settings.strength
    return info.build(model, Categorical(), **options)


def _network(settings: ContinualSettings, tasks: list[Task]) -> nn.Module:
    if settings.images:
        channels = tasks[0].x_train.shape[1]
        body: nn.Module = small_convolutional(channels, norm=settings.norm)
        features = 64
    else:
        body = nn.Sequential(mlp((tasks[0].x_train.shape[1], *settings.hidden)), nn.ReLU())
        features = settings.hidden[-1]
    if settings.scenario == "task":
        return MultiHead(body, features, [task.outputs for task in tasks])
    if settings.images:
        return nn.Sequential(*body.children(), nn.Linear(features, tasks[0].outputs))
    return mlp((tasks[0].x_train.shape[1], *settings.hidden, tasks[0].outputs))


def _report(
    settings: ContinualSettings, folder: RunFolder, results: Mapping[str, ContinualResult], console: Console
) -> None:
    content = {name: result.to_dict() for name, result in results.items()}
    folder.write_json("results.json", {"continual": asdict(settings), "results": content})
    plot_tasks(results, folder.path)
    table = Table(title=f"{settings.benchmark}, test parts of {len(next(iter(results.values())).tasks)} tasks")
    table.add_column("method")
    metrics = next(iter(results.values())).metrics
    for key in metrics:
        table.add_column(key.replace("_", " "), justify="right")
    for name, result in results.items():
        table.add_row(name, *(f"{value:.4f}" for value in result.metrics.values()))
    console.print(table)
    say(console, f"Everything is in {folder.path}")
