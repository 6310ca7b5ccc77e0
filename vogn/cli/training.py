"""The training loop. A resumed run equals the uninterrupted one to the bit, at the same number of threads.

Everything random is a function of (seed, epoch, batch): the order of the data, augmentation, and the global generator,
which is set anew for every batch so that dropout and the like repeat too. Weight noise is the optimizer's own affair
and lives in its state.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from vogn.cli.errors import DivergedError, InterruptedRunError
from vogn.cli.evaluation import mean_scores
from vogn.cli.interruption import Interruption
from vogn.cli.schedule import SCHEDULES
from vogn.cli.session import Session
from vogn.data import epoch_batches

_GLOBAL_STREAM = 0x6E0B


class Watcher(Protocol):
    """Is told how training goes."""

    def batch_done(self, session: Session, done: int, total: int) -> None:
        """After every step: ``done`` of ``total`` steps of the whole run."""
        ...

    def epoch_done(self, session: Session, row: dict[str, float]) -> None:
        """After every epoch, with its row of ``metrics.jsonl``."""
        ...


class SilentWatcher:
    """Says nothing."""

    def batch_done(self, session: Session, done: int, total: int) -> None:
        """See :class:`Watcher`."""

    def epoch_done(self, session: Session, row: dict[str, float]) -> None:
        """See :class:`Watcher`."""


@dataclass
class Training:
    """Trains one session to its last epoch, from wherever it is.

    Args:
        session: the run.
        watcher: is told about progress.
        interruption: signals received.
        resume_hint: the command that continues the run, for the message after a signal.
    """

    session: Session
    watcher: Watcher
    interruption: Interruption
    resume_hint: str

    def __post_init__(self) -> None:
        settings, count = self.session.settings, len(self.session.data.train)
        self.batches_per_epoch = len(epoch_batches(count, settings.batch_size, settings.seed, 0))
        self.total_steps = self.batches_per_epoch * settings.epochs
        self.warmup_steps = min(round(settings.warmup_epochs * self.batches_per_epoch), self.total_steps // 2)

    def run(self) -> None:
        """Train.

        Raises:
            InterruptedRunError: a signal came; the checkpoint is written.
            DivergedError: the loss is not finite; the last checkpoint is left as it was.
        """
        session = self.session
        session.folder.drop_metrics_from(session.position.epoch)
        while session.position.epoch < session.settings.epochs:
            self._train_epoch()
            row = self._summary()
            session.folder.append_metrics(row)
            session.position = session.task.position(epoch=session.position.epoch + 1)
            session.save()
            self.watcher.epoch_done(session, row)
            self._leave_if_interrupted(saved=True)

    def _train_epoch(self) -> None:
        session, position = self.session, self.session.position
        settings, train = session.settings, session.data.train
        batches = epoch_batches(len(train), settings.batch_size, settings.seed, position.epoch)
        session.model.train()
        while position.batch < len(batches):
            started = time.perf_counter()
            indices = batches[position.batch]
            x, y = train.x[indices].to(session.device), train.y[indices].to(session.device)
            if session.data.augmentation is not None:
                x = session.data.augmentation(x, seed=settings.seed, epoch=position.epoch, batch=position.batch)
            loss, outputs = self._step(x, y, indices)
            position.count(outputs, y, loss)
            position.seconds += time.perf_counter() - started
            done = position.epoch * self.batches_per_epoch + position.batch
            self.watcher.batch_done(session, done, self.total_steps)
            due = position.batch % settings.checkpoint_every == 0
            if due:
                session.save()
            self._leave_if_interrupted(saved=due)

    def _step(self, x: Tensor, y: Tensor, indices: Tensor) -> tuple[float, Tensor]:
        """One step; returns the loss and the outputs (under the sampled weights)."""
        session, position = self.session, self.session.position
        step = position.epoch * self.batches_per_epoch + position.batch
        session.observation.before_step(session, step, self.total_steps)
        torch.manual_seed(_global_seed(session.settings.seed, position.epoch, position.batch))
        factor = self.schedule(step)
        for group, rate in zip(session.optimizer.param_groups, session.rates, strict=True):
            group["lr"] = rate * factor
        session.optimizer.zero_grad()
        with session.contender.sampled(session.optimizer, indices):
            outputs = session.model(x)
            loss = session.observation.likelihood(outputs, y)
            loss.backward()
        value = loss.item()
        if not math.isfinite(value):
            raise DivergedError(
                f"the training loss is {value} in epoch {position.epoch + 1}, batch {position.batch + 1} of "
                f"{session.contender.label}; lower --lr (it peaks at {session.rates[0]:g}) or raise --prior-precision"
            )
        session.optimizer.step()
        seen = outputs.detach()
        session.observation.after_step(seen, y, step, self.total_steps)
        return value, seen

    def schedule(self, step: int) -> float:
        """Factor on the peak learning rate at a step of the run, from 0."""
        return SCHEDULES[self.session.settings.schedule](step, self.total_steps, self.warmup_steps)

    def _summary(self) -> dict[str, float]:
        session, position = self.session, self.session.position
        row = {
            "epoch": position.epoch + 1,
            **{f"train_{name}": value for name, value in session.task.training_figures(position).items()},
            "lr": session.optimizer.param_groups[0]["lr"],
            "seconds": round(position.seconds, 3),
        }
        if len(session.data.validation):
            figures = session.task.figures(mean_scores(session, session.data.validation))
            row |= {f"validation_{name}": value for name, value in figures.items()}
        return row

    def _leave_if_interrupted(self, *, saved: bool) -> None:
        if self.interruption.signal_number is None:
            return
        if not saved:
            self.session.save()
        position = self.session.position
        raise InterruptedRunError(
            f"Stopped after epoch {position.epoch}, batch {position.batch} of {self.session.contender.label}; "
            f"go on with: {self.resume_hint}",
            self.interruption.signal_number,
        )


def _global_seed(seed: int, epoch: int, batch: int) -> int:
    return int(np.random.SeedSequence([_GLOBAL_STREAM, seed, epoch, batch]).generate_state(1, np.uint64)[0] >> 1)
