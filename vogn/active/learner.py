"""The loop: ask, label, learn; every step of it can be interrupted and taken up again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vogn.active.acquisition import Acquisition, Selection
from vogn.active.acquisitions import acquisition_of
from vogn.active.asking import Oracle, ask, give
from vogn.active.candidates import Candidates
from vogn.active.errors import LabelError, PoolExhaustedError
from vogn.active.labelled import Labelled, check_part
from vogn.active.labels import LabelRule
from vogn.active.ledger import Ledger
from vogn.active.measuring import measure
from vogn.active.pool import as_pool, checked_inputs
from vogn.active.posterior_method import PosteriorMethod, Refit
from vogn.active.result import ActiveResult
from vogn.active.state import (
    LearnerState,
    acquisition_settings,
    description,
    digest,
    pool_digest,
    read_state,
    write_state,
)
from vogn.active.watching import Silent, Watcher
from vogn.errors import StoppedError
from vogn.likelihoods import Likelihood
from vogn.posterior import Posterior
from vogn.predict.evaluation import device_of, seeded, undisturbed


class ActiveLearner:
    """A posterior that asks for the labels it learns most from.

    A round is: choose examples, have them labelled, update the posterior, measure. :meth:`run` does so many rounds
    with an oracle; :meth:`query`, :meth:`label` and :meth:`update` are the same by hand.

    With a folder every label is on disk (``labels.jsonl``) before anything else happens, and where the run stands
    (``state.pt``) is replaced in one step after every choice and every update. A run that was killed at any time goes
    on when a learner is built again with the same arguments and folder; a training that was cut short is done again.
    Everything random is a function of ``seed`` and the round, so it ends, on the same CPU, with the same choices,
    weights and figures bit for bit. Torch's random state is left as it was.

    Args:
        model_factory: makes a new network whose outputs are ``(n, K)`` or ``(n,)``.
        posterior_method: a :class:`vogn.active.PosteriorMethod`, or a function ``(model, likelihood, x, y)`` to a
            posterior, which is called with all labels and a new network in every round (:class:`vogn.active.Refit`).
        pool: a tensor, an array (memory-mapped ones too), a map-style data set or a :class:`vogn.active.Pool`.
        acquisition: an acquisition, or a name in :data:`vogn.active.ACQUISITIONS`.
        likelihood: one label of a class, or real targets.
        oracle: see :data:`vogn.active.Oracle`; ``None``: labels are given by :meth:`label`.
        initial: examples of the first query, at random, >= 0; or their numbers.
        query_size: examples of every other query, >= 1.
        labelled: inputs and targets that are there besides the pool.
        test: inputs and targets to measure on.
        targets: inputs at which predictions matter, for EPIG.
        samples: weight samples of predictions, >= 1.
        prediction: further arguments of :func:`vogn.predict`, such as ``{"method": "linearized"}``.
        chunk: examples of the pool that are read and predicted at a time, >= 1.
        seed: >= 0.
        folder: made if need be; ``None`` keeps everything in memory only.

    Attributes:
        pending: numbers that are asked about at present, ``None`` between rounds.

    Raises:
        PoolError: if the pool is empty, or test inputs hold NaN.
        ValueError: for a number out of range, or an acquisition that is not meant for the likelihood.
        CheckpointError: if the folder holds another run, or damaged files.
    """

    def __init__(
        self,
        model_factory: Callable[[], nn.Module],
        posterior_method: PosteriorMethod | Callable[[nn.Module, Likelihood, Tensor, Tensor], Posterior],
        pool: Any,
        acquisition: str | Acquisition,
        *,
        likelihood: Likelihood,
        oracle: Oracle | None = None,
        initial: int | Sequence[int] | Tensor = 20,
        query_size: int = 10,
        labelled: tuple[Tensor, Tensor] | None = None,
        test: tuple[Tensor, Tensor] | None = None,
        targets: Tensor | None = None,
        samples: int = 32,
        prediction: Mapping[str, Any] | None = None,
        chunk: int = 512,
        seed: int = 0,
        folder: str | Path | None = None,
    ) -> None:
        for name, value, least in (("query_size", query_size, 1), ("samples", samples, 1), ("chunk", chunk, 1),
                                   ("seed", seed, 0)):  # fmt: skip
            if value < least:
                raise ValueError(f"{name}={value} must be at least {least}")
        taken = {"samples", "seed", "likelihood", "keep_samples", "progress"} & set(prediction or {})
        if taken:
            raise ValueError(f"prediction holds {', '.join(sorted(taken))}: what the learner sets itself")
        self.pool = as_pool(pool)
        self.acquisition = acquisition_of(acquisition)
        self.acquisition.check(likelihood)
        self.method = posterior_method if isinstance(posterior_method, PosteriorMethod) else Refit(posterior_method)
        self.likelihood, self.oracle, self.query_size = likelihood, oracle, query_size
        self.test, self.targets, self.samples = test, targets, samples
        self.prediction, self.chunk, self.seed = dict(prediction or {}), chunk, seed
        self.path = None if folder is None else Path(folder)
        self._factory = model_factory
        check_part("labelled", labelled)
        check_part("test", test)
        with seeded(self._seed(0)):
            self.method.check(model_factory)
            model, some = model_factory(), checked_inputs(self.pool, torch.arange(min(2, len(self.pool))))
            with undisturbed(model, seed=0):
                rule = LabelRule(likelihood, model(some.to(device_of(model))))
        ledger = Ledger(None if self.path is None else self.path / "labels.jsonl")
        self.examples = Labelled(self.pool, rule, ledger, labelled)
        self.pending: list[int] | None = None
        self.rows: list[dict[str, Any]] = []
        self._initial = self.examples.first(initial, self._seed(0))
        self._run = self._description()
        self._watcher: Watcher = Silent()
        self._stop: Callable[[], bool] = lambda: False
        self._restore()

    # ------------------------------------------------------------------ what was learnt

    @property
    def model(self) -> nn.Module:
        """The network of the latest update.

        Raises:
            RuntimeError: before the first one.
        """
        if self.method.model is None:
            raise RuntimeError("nothing has been learnt yet: call run(), or query(), label() and update()")
        return self.method.model

    @property
    def posterior(self) -> Posterior:
        """The posterior of the latest update.

        Raises:
            RuntimeError: before the first one.
        """
        _ = self.model
        assert self.method.posterior is not None
        return self.method.posterior

    @property
    def result(self) -> ActiveResult:
        """The rows so far."""
        return ActiveResult([dict(row) for row in self.rows], exhausted=len(self.numbers) == len(self.pool))

    @property
    def numbers(self) -> list[int]:
        """Numbers of the pool's examples that were learnt from, in order."""
        return list(self.examples.numbers)

    @property
    def ledger(self) -> Ledger:
        """All labels of the pool's examples, those of the present query included."""
        return self.examples.ledger

    # ------------------------------------------------------------------ the loop

    def run(
        self,
        rounds: int,
        *,
        watcher: Watcher | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> ActiveResult:
        """Train until there are so many rows, the first query's included; ends early where the pool does.

        Args:
            rounds: in all, those of earlier calls and processes included, >= 1.
            watcher: see :class:`vogn.active.Watcher`.
            should_stop: is asked after every step, label and piece of the pool.

        Returns:
            The rows.

        Raises:
            ValueError: without an oracle, or for ``rounds < 1``.
            LabelError: if the oracle gave a label that is none; those before are kept.
            StoppedError: if ``should_stop`` said so; the run can go on.
        """
        if rounds < 1:
            raise ValueError(f"rounds={rounds} must be at least 1")
        if self.oracle is None:
            raise ValueError("run() needs an oracle; give one, or use query(), label() and update()")
        self._watcher, self._stop = watcher or Silent(), should_stop
        try:
            while len(self.rows) < rounds:
                if self.pending is None and self.rows and not len(self.examples.open()):
                    break
                self.query()
                ask(self.examples, self.missing(), self.oracle, self._told)
                self.update()
        finally:
            self._watcher, self._stop = Silent(), lambda: False
        return self.result

    def query(self) -> Tensor:
        """Numbers of the examples to be labelled next, ``(b,)``; the same until they are, and :meth:`update` was
        called.

        Raises:
            PoolExhaustedError: if all examples have labels.
            PoolError: if inputs hold NaN.
        """
        if self.pending is None:
            self.pending = list(self._initial) if not self.rows else self.select().indices.tolist()
            self._save()
        return torch.tensor(self.pending, dtype=torch.int64)

    def select(self, count: int | None = None) -> Selection:
        """What the acquisition would choose now; changes nothing.

        Args:
            count: examples; ``None`` is ``query_size``.
        """
        numbers = self.examples.open()
        if not len(numbers):
            raise PoolExhaustedError(f"all {len(self.pool)} examples of the pool have labels")
        candidates = Candidates(
            self.model, self.posterior, self.likelihood, self.pool, numbers,
            known=self.examples.inputs(), targets=self.targets, samples=self.samples, chunk=self.chunk,
            seed=self._seed(len(self.rows)), prediction=self.prediction, watch=self._look,
        )  # fmt: skip
        return self.acquisition.select(candidates, self.query_size if count is None else count)

    def label(self, labels: Any, indices: Sequence[int] | Tensor | None = None) -> None:
        """Give labels of the present query; some of them, or one, at a time if need be.

        Args:
            labels: one for each index.
            indices: numbers of the examples; ``None``: all that still lack a label, in the order of the query.

        Raises:
            LabelError: if a label is none, an example was not asked for or has one, or their numbers differ. Labels
                before the wrong one are kept.
        """
        give(self.examples, self.missing(), labels, indices)

    def missing(self) -> list[int]:
        """Numbers of the present query that lack a label.

        Raises:
            RuntimeError: if there is no query.
        """
        if self.pending is None:
            raise RuntimeError("there is no query: call query() first")
        return [index for index in self.pending if index not in self.ledger]

    def update(self) -> dict[str, Any]:
        """Learn from the labels of the present query, and measure.

        If training fails or is interrupted, everything is as before the call.

        Returns:
            The new row; see :class:`vogn.active.ActiveResult`.

        Raises:
            LabelError: if labels are missing.
            NonFiniteStatisticsError: if training diverges.
        """
        missing = self.missing()
        if missing:
            raise LabelError(f"{len(missing)} of the examples that were asked for have no label: {missing[:10]}")
        assert self.pending is not None
        number, seed = len(self.rows), self._seed(len(self.rows) + 1)
        numbers = [*self.examples.numbers, *self.pending]
        x, y = self.examples.data(numbers)
        new = torch.arange(len(x) - len(self.pending) if number else 0, len(x))
        before = self.method.snapshot(), self._noise()
        try:
            with seeded(seed):
                self.method.update(self._factory, self.likelihood, x, y, new=new, seed=seed, watch=self._step)
                row: dict[str, Any] = {"round": number, "labels": len(x), "queried": list(self.pending)}
                if self.test is not None:
                    row |= measure(
                        self.model, self.posterior, self.likelihood, self.test,
                        samples=self.samples, seed=seed, prediction=self.prediction,
                    )  # fmt: skip
        except BaseException:
            self._take_back(*before)
            raise
        self.examples.numbers, self.pending = numbers, None
        self.rows.append(row)
        self._save()
        self._watcher.round_done(row)
        return row

    # ------------------------------------------------------------------ parts

    def _told(self, wanted: int, given: int) -> None:
        self._watcher.asked(wanted, given)
        self._look()

    def _seed(self, stream: int) -> int:
        """A seed for every round, and one more."""
        return int(np.random.SeedSequence([self.seed, stream]).generate_state(1)[0])

    def _look(self) -> None:
        if self._stop():
            raise StoppedError(f"stopped in round {len(self.rows)}, with {len(self.ledger)} labels of the pool")

    def _step(self, done: int, total: int, loss: float) -> None:
        self._watcher.step_done(done, total, loss)
        self._look()

    def _description(self) -> str:
        return description(
            method=self.method.describe(),
            acquisition=acquisition_settings(self.acquisition),
            likelihood=self.likelihood.kind,
            initial=self._initial,
            query_size=self.query_size,
            samples=self.samples,
            prediction={key: str(value) for key, value in self.prediction.items()},
            seed=self.seed,
            pool=pool_digest(self.pool),
            labelled=[digest(part) for part in self.examples.given or ()],
            test=[digest(part) for part in self.test or ()],
            targets=digest(self.targets),
        )

    def _noise(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.likelihood.parameters()]

    def _take_back(self, method: Mapping[str, Any], noise: Sequence[Tensor]) -> None:
        with seeded(0), torch.no_grad():
            self.method.load_state_dict(method, self._factory)
            for parameter, value in zip(self.likelihood.parameters(), noise, strict=True):
                parameter.copy_(value)

    def _save(self) -> None:
        if self.path is not None:
            state = LearnerState(
                self._run, self.examples.numbers, self.pending, self.rows, self.method.state_dict(), self._noise()
            )
            write_state(self.path / "state.pt", state)

    def _restore(self) -> None:
        state = None if self.path is None else read_state(self.path / "state.pt", self._run)
        if state is None:
            return
        self.examples.numbers, self.pending, self.rows = state.numbers, state.pending, state.rows
        self._take_back(state.method, state.noise)
