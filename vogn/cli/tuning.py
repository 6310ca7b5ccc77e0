"""``vogn tune``: a learning rate for `vogn train`."""

from __future__ import annotations

import inspect
import itertools
import math
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from vogn.cli.commands import use_threads
from vogn.cli.contenders import Recipe, check_method, contender_of
from vogn.cli.errors import UsageError
from vogn.cli.plots import plot_range_test
from vogn.cli.run_folder import RunFolder, new_path, versions
from vogn.cli.screen import RangeTestBar, say
from vogn.cli.session import Session, open_data, rehearse
from vogn.cli.settings import Settings, given_settings
from vogn.cli.tasks import task_of
from vogn.data import Split, epoch_batches
from vogn.data.order import epoch_order
from vogn.optim import METHODS, NaturalGradient
from vogn.optim.damping_search import DampingSearch, damping_search
from vogn.optim.range_test import FEWEST_STEPS, RangeTest, learning_rate_range_test
from vogn.optim.temperature_search import TemperatureSearch, temperature_search

_MOST_STEPS = 1_000_000
_LONGEST = 6.0
"""The finalists of a search run as long as training would, but no longer than so many short runs."""
_AT_ONCE = 256
"""Examples of the validation part in a batch."""


def tune(
    given: Mapping[str, Any],
    *,
    smallest: float | None,
    largest: float | None,
    steps: int,
    runs: bool,
    search_damping: bool,
    search_temperature: bool,
    folds: int,
    output: Path | None,
    console: Console,
) -> RangeTest:
    """Test learning rates on the training part and print the options for `vogn train`.

    Short runs are compared on the validation part, if there is one.

    Args:
        given: settings that the command line gave, by field of :class:`Settings`; ``None`` for the others.
        smallest, largest, steps, runs: see :func:`vogn.learning_rate_range_test`.
        search_damping: see :func:`vogn.damping_search`.
        search_temperature: see :func:`vogn.temperature_search`; at the rate and the damping that were found.
        folds: on which the longer runs of the search for a damping are made: the validation part is held out in the
            first, as many other examples in each of the others.
        output: folder for ``range_test.json`` and ``range_test.png``; ``None`` makes a name.
        console: where to write.
    """
    settings = given_settings(given)
    check_method(settings.method)
    _check(settings, smallest, largest, steps)
    use_threads(settings.threads)
    data = open_data(settings)
    task = task_of(data)
    settings = task.settled(settings, given)
    recipe = task.recipe(settings.method, settings.variational)
    if search_damping:
        _check_search(settings, recipe, runs)
    if search_temperature:
        _check_temperature(settings, recipe, len(data.validation))
    _check_folds(folds, search_damping, len(data.train), len(data.validation))
    contender = contender_of(settings, recipe, settings.variational)
    rehearse(settings, contender, data)
    folder = RunFolder.create(output or new_path(settings, contender.key, suffix="-tune"), resumable=False)
    session = Session.start(settings, contender, data, folder)
    optimizer = session.optimizer
    assert isinstance(optimizer, NaturalGradient)
    session.model.train()
    torch.manual_seed(settings.seed)
    subjects = (optimizer, session.model, session.observation.searching, _TrainingBatches(session))
    held_out = _batches(data.validation) if runs and len(data.validation) else None
    options: dict[str, Any] = {"smallest": smallest, "largest": largest, "steps": steps, "held_out": held_out}
    search: DampingSearch | None = None
    colder: TemperatureSearch | None = None
    longer = _longer(session, steps)
    with RangeTestBar(console, contender.label, steps) as bar:
        if search_damping:
            further = _further(session, folds)
            search = damping_search(*subjects, **options, longer=longer, further=further, indexed=True, watch=bar)
            chosen = dict(search.tests)[search.damping]
            assert chosen is not None
            found = replace(chosen, suggestion=search.suggestion)
        else:
            found = learning_rate_range_test(*subjects, runs=runs, **options, indexed=True, watch=bar)
        if search_temperature:
            for group in optimizer.param_groups:
                group.update({"lr": found.suggestion} | ({} if search is None else {"damping": search.damping}))
            # in another order than the runs that chose rate and damping, which had luck in theirs
            subjects = (*subjects[:3], _TrainingBatches(session, order=1))
            outside = _batches(data.validation)
            long = round(longer * steps)
            colder = temperature_search(*subjects, held_out=outside, steps=long, indexed=True, watch=bar)
    record = {"settings": settings.to_dict(), "resolved": session.resolved(), "versions": versions()}
    if search is not None:
        record["damping_search"] = search.to_dict()
    chosen_options = dict(given) | {"lr": found.suggestion}
    if colder is not None:
        record["temperature_search"] = colder.to_dict()
        chosen_options |= _tempered(settings, recipe, colder.factor)
    _tell(console, found, search, folder.path)
    for factor, loss in colder.trials if colder is not None else ():
        temperature = _tempered(settings, recipe, factor)["temperature"]
        say(console, f"run at temperature {temperature:g}: ends with loss {loss:.4f}")
    damping = None if search is None else search.damping
    say(console, f"vogn train {_options(chosen_options, damping)}")
    folder.write_json("range_test.json", record | {"range_test": found.to_dict()})
    plot_range_test(found, folder.path / "range_test.png")
    return found


def _longer(session: Session, steps: int) -> float:
    """How many short runs the finalists' runs are as long as."""
    settings = session.settings
    training = settings.epochs * len(epoch_batches(len(session.data.train), settings.batch_size, settings.seed, 0))
    return min(max(training / steps, 1.0), _LONGEST)


def _batches(part: Split) -> list[tuple[Tensor, Tensor]]:
    return list(zip(part.x.split(_AT_ONCE), part.y.split(_AT_ONCE), strict=True))


def _further(session: Session, folds: int) -> list[tuple[_TrainingBatches, list[tuple[Tensor, Tensor]]]]:
    """Batches and held-out part of all folds but the first: parts of the training data, none of them twice."""
    train, size = session.data.train, len(session.data.validation)
    order, found = epoch_order(len(train), session.settings.seed, 0), []
    for k in range(folds - 1):
        outside = order[k * size : (k + 1) * size]
        inside = torch.cat([order[: k * size], order[(k + 1) * size :]])
        found.append((_TrainingBatches(session, inside), _batches(Split(train.x[outside], train.y[outside]))))
    return found


def _tell(console: Console, found: RangeTest, search: DampingSearch | None, path: Path) -> None:
    """What was found, in words."""
    for damping, test in search.tests if search is not None else ():
        end = "no rate at which the loss falls" if test is None else f"short run at lr {test.suggestion:.2g} ends with "
        loss = "" if test is None else f"loss {sum(test.final) / len(test.final):.4f}"
        say(console, f"damping {damping:.2g}: {end}{loss}")
    for damping, rate, last in search.finals if search is not None else ():
        say(console, f"longer run at damping {damping:.2g}, lr {rate:.2g}: ends with loss {last:.4f}")
    end = "diverged" if found.diverged else "ended"
    chosen = f"lr {found.suggestion:.2g}" + (f", damping {search.damping:.2g}" if search is not None else "")
    say(
        console,
        f"loss {found.smoothed[0]:.4f} at lr {found.rates[0]:.2g}, {min(found.smoothed):.4f} at best; {end} at lr "
        f"{found.rates[-1]:.2g}. Chosen: {chosen}. Everything is in {path}",
    )
    if found.runs:
        tried = ", ".join(f"{loss:.4f} at lr {rate:.2g}" for rate, loss in found.runs)
        say(console, f"short runs end with loss {tried}")
    if not found.diverged and found.smoothed[-1] == min(found.smoothed):
        say(console, "the loss still fell at the largest rate: a larger --largest may find a better one")


class _TrainingBatches:
    """The batches that training would see, epoch after epoch; from the first one whenever it is gone through.

    Args:
        inside: the training examples that are used; ``None``: all.
        order: another number, other batches.
    """

    def __init__(self, session: Session, inside: Tensor | None = None, order: int = 0) -> None:
        self._session, self._order = session, order
        self._inside = torch.arange(len(session.data.train)) if inside is None else inside

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        session, settings, train = self._session, self._session.settings, self._session.data.train
        for epoch in itertools.count():
            batches = epoch_batches(len(self._inside), settings.batch_size, settings.seed + self._order, epoch)
            for number, places in enumerate(batches):
                indices = self._inside[places]
                x = train.x[indices]
                if session.data.augmentation is not None:
                    x = session.data.augmentation(x, seed=settings.seed, epoch=epoch, batch=number)
                yield indices, (x, train.y[indices])


def _check(settings: Settings, smallest: float | None, largest: float | None, steps: int) -> None:
    if METHODS[settings.method].sets_groups:
        raise UsageError(f"--method {settings.method} sets its step sizes itself: there is no learning rate to tune")
    for name, value in (("smallest", smallest), ("largest", largest)):
        if value is not None and not 0.0 < value < math.inf:
            raise UsageError(f"--{name} is {value}; it must be above 0")
    if smallest is not None and largest is not None and smallest >= largest:
        raise UsageError(f"--smallest is {smallest}; it must be below --largest {largest}")
    if smallest is not None and largest is None:
        raise UsageError("--smallest needs --largest")
    if not FEWEST_STEPS <= steps <= _MOST_STEPS:
        bound = f" and at most {_MOST_STEPS}" if steps > _MOST_STEPS else ""
        raise UsageError(f"--steps is {steps}; it must be at least {FEWEST_STEPS}{bound}")


def _check_search(settings: Settings, recipe: Recipe, runs: bool) -> None:
    if not runs:
        raise UsageError("--search-damping compares the ends of short runs: leave --no-runs out")
    default = inspect.signature(METHODS[settings.method].constructor).parameters["damping"].default
    damping = recipe.options.get("damping", default) if settings.damping is None else settings.damping
    if not damping > 0.0:
        raise UsageError(f"--search-damping begins at --damping {damping:g}, which must be above 0")


def _check_temperature(settings: Settings, recipe: Recipe, validation: int) -> None:
    if not settings.variational:
        raise UsageError("--search-temperature needs --variational: a deterministic run has no temperature")
    if recipe.evidence:
        raise UsageError("--search-temperature is for classification: a regression has its posterior, temperature 1")
    if settings.ess is not None:
        raise UsageError("--search-temperature excludes --ess, which leaves no temperature to choose")
    if not validation:
        raise UsageError("--search-temperature compares runs on a validation part, and these data have none")


def _check_folds(folds: int, search_damping: bool, train: int, validation: int) -> None:
    if folds == 1:
        return
    if not search_damping:
        raise UsageError("--folds repeats the longer runs of --search-damping: give both, or leave it out")
    if not validation:
        raise UsageError("--folds holds as many examples out as the validation part has, and these data have none")
    most = 1 + train // (2 * validation)  # half of the training part may be held out
    if not 1 <= folds <= most:
        raise UsageError(
            f"--folds is {folds}; with {train} training and {validation} validation examples 1 to {most} are possible"
        )


def _tempered(settings: Settings, recipe: Recipe, factor: float) -> dict[str, float]:
    """Temperature and prior precision with which ``ess`` is so many times as large and the weight decay the same."""
    temperature = recipe.temperature if settings.temperature is None else settings.temperature
    precision = recipe.prior_precision if settings.prior_precision is None else settings.prior_precision
    values = {"temperature": temperature / factor, "prior_precision": precision * factor}
    return {name: float(f"{value:.3g}") for name, value in values.items()}


def _options(given: Mapping[str, Any], damping: float | None) -> str:
    """The given options and what was found, as one would type them."""
    words = []
    for name, value in given.items():
        if value is None or (name == "damping" and damping is not None):
            continue
        if name == "variational":
            words.append("--variational" if value else "--deterministic")
        elif name == "augment":
            words.append("--augment" if value else "--no-augment")
        else:
            words += [f"--{name.replace('_', '-')}", f"{value:.2g}" if name == "lr" else str(value)]
    return shlex.join(words + (["--damping", f"{damping:.2g}"] if damping is not None else []))
