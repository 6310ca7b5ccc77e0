"""``vogn tune``: a learning rate for `vogn train`."""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from vogn.cli.commands import use_threads
from vogn.cli.contenders import NaturalGradientContender, check_method
from vogn.cli.errors import UsageError
from vogn.cli.plots import plot_range_test
from vogn.cli.run_folder import RunFolder, new_path, versions
from vogn.cli.screen import RangeTestBar, say
from vogn.cli.session import Session, open_data, rehearse
from vogn.cli.settings import Settings, given_settings
from vogn.data import epoch_batches
from vogn.likelihoods import Categorical
from vogn.optim import METHODS, NaturalGradient
from vogn.optim.range_test import FEWEST_STEPS, RangeTest, learning_rate_range_test

_MOST_STEPS = 1_000_000


def tune(
    given: Mapping[str, Any],
    *,
    smallest: float | None,
    largest: float | None,
    steps: int,
    runs: bool,
    output: Path | None,
    console: Console,
) -> RangeTest:
    """Test learning rates on the training part and print the options for `vogn train`.

    Args:
        given: settings that the command line gave, by field of :class:`Settings`; ``None`` for the others.
        smallest, largest, steps, runs: see :func:`vogn.learning_rate_range_test`.
        output: folder for ``range_test.json`` and ``range_test.png``; ``None`` makes a name.
        console: where to write.
    """
    settings = given_settings(given)
    check_method(settings.method)
    _check(settings, smallest, largest, steps)
    use_threads(settings.threads)
    contender = NaturalGradientContender(settings.method, settings.variational)
    data = open_data(settings)
    rehearse(settings, contender, data)
    folder = RunFolder.create(output or new_path(settings, contender.key, suffix="-tune"))
    session = Session.start(settings, contender, data, folder)
    optimizer = session.optimizer
    assert isinstance(optimizer, NaturalGradient)
    session.model.train()
    torch.manual_seed(settings.seed)
    with RangeTestBar(console, contender.label, steps) as bar:
        found = learning_rate_range_test(
            optimizer,
            session.model,
            Categorical(),
            _TrainingBatches(session),
            smallest=smallest,
            largest=largest,
            steps=steps,
            runs=runs,
            indexed=True,
            watch=bar,
        )
    record = {"settings": settings.to_dict(), "resolved": session.resolved(), "versions": versions()}
    folder.write_json("range_test.json", record | {"range_test": found.to_dict()})
    plot_range_test(found, folder.path / "range_test.png")
    end = "diverged" if found.diverged else "ended"
    say(
        console,
        f"loss {found.smoothed[0]:.4f} at lr {found.rates[0]:.2g}, {min(found.smoothed):.4f} at best; {end} at lr "
        f"{found.rates[-1]:.2g}. Chosen: lr {found.suggestion:.2g}. Everything is in {folder.path}",
    )
    if found.runs:
        tried = ", ".join(f"{loss:.4f} at lr {rate:.2g}" for rate, loss in found.runs)
        say(console, f"short runs end with loss {tried}")
    if not found.diverged and found.smoothed[-1] == min(found.smoothed):
        say(console, "the loss still fell at the largest rate: a larger --largest may find a better one")
    say(console, f"vogn train {_options(given, found.suggestion)}")
    return found


class _TrainingBatches:
    """The batches that training would see, epoch after epoch; from the first one whenever it is gone through."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        session, settings, train = self._session, self._session.settings, self._session.data.train
        for epoch in itertools.count():
            for number, indices in enumerate(epoch_batches(len(train), settings.batch_size, settings.seed, epoch)):
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


def _options(given: Mapping[str, Any], rate: float) -> str:
    """The given options and the learning rate, as one would type them."""
    words = []
    for name, value in given.items():
        if value is None:
            continue
        if name == "variational":
            words.append("--variational" if value else "--deterministic")
        elif name == "augment":
            words.append("--augment" if value else "--no-augment")
        else:
            words += [f"--{name.replace('_', '-')}", str(value)]
    return shlex.join([*words, "--lr", f"{rate:.2g}"])
