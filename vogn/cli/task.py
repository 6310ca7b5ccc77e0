"""What a run learns: everything in which classification and regression differ, in one object each."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from vogn.cli.contenders import Recipe
from vogn.cli.networks import ModelSpec
from vogn.cli.observation import Observation
from vogn.cli.position import RunPosition
from vogn.cli.settings import Settings
from vogn.data import Data, RealData, Split
from vogn.predict import Predictive
from vogn.report import Column, Shift

D = TypeVar("D", Data, RealData)


class Scores(Protocol):
    """Figures of predictions; the columns of :attr:`Task.COLUMNS` are among its attributes."""

    @property
    def nll(self) -> float:
        """Mean negative log-likelihood in nats."""
        ...

    def figures(self) -> dict[str, float]:
        """All figures by name."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """One row of the table.

    Args:
        label: who was trained.
        how: ``"mean"`` or the posterior predictive.
        scores: the figures.
        predictive: what they were computed from.
        targets: labels ``(N,)``, or numbers in their own unit ``(N, 1)``.
    """

    label: str
    how: str
    scores: Scores
    predictive: Predictive
    targets: Tensor

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {"label": self.label, "how": self.how, **self.scores.figures()}


class Task(ABC, Generic[D]):
    """A data set and what is learned from it.

    Class attributes:
        NAME: value of ``--task``.
        COLUMNS: of the last screen.
        KEEPS_SAMPLES: whether its figures need the outputs of every weight sample.
        CURVE: the figure beside the loss in training.

    Args:
        data: the data set.
    """

    NAME: str
    COLUMNS: tuple[Column, ...]
    KEEPS_SAMPLES: bool
    CURVE: str

    def __init__(self, data: D) -> None:
        self.data: D = data

    @abstractmethod
    def settled(self, settings: Settings, given: Mapping[str, Any]) -> Settings:
        """The settings of a new run, with the task's own defaults where the command line gave nothing.

        Raises:
            UsageError: an option does not apply.
        """

    def lines_apart(self, epochs: int) -> int:
        """Of how many epochs one gets a line where there is no terminal."""
        return 1

    @abstractmethod
    def headline(self) -> str:
        """What there is to predict, in a few words."""

    @abstractmethod
    def spec(self, settings: Settings) -> ModelSpec:
        """The architecture."""

    @abstractmethod
    def recipe(self, method: str, variational: bool) -> Recipe:
        """What a method is given where the command line says nothing."""

    @abstractmethod
    def observation(self, settings: Settings, device: torch.device) -> Observation:
        """A new likelihood."""

    @abstractmethod
    def position(self, **values: Any) -> RunPosition:
        """A position of a run of this task; the beginning without arguments."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with, as plain values."""

    @abstractmethod
    def predicted(self, found: Predictive) -> Predictive:
        """Predictions as they are shown: numbers in their own unit."""

    @abstractmethod
    def targets(self, split: Split) -> Tensor:
        """Targets as they are shown."""

    @abstractmethod
    def scores(self, found: Predictive, targets: Tensor) -> Scores:
        """Figures of predictions as they are shown."""

    @abstractmethod
    def training_figures(self, position: RunPosition) -> dict[str, float]:
        """Loss and :attr:`CURVE` of the epoch so far."""

    @abstractmethod
    def figures(self, scores: Scores) -> dict[str, float]:
        """The same of a part of the data."""

    @abstractmethod
    def pictures(self, rows: Sequence[Evaluation], x: Tensor) -> dict[str, Any]:
        """File name to figure, of the last screen's rows on the inputs ``x``."""

    @abstractmethod
    def arrays(self, found: Predictive) -> dict[str, np.ndarray]:
        """What `vogn predict` writes."""

    @abstractmethod
    def other(self, settings: Settings) -> Data | RealData:
        """Another data set with the same kind of targets, as inputs and targets of this run.

        Raises:
            UsageError, DataError: it does not fit.
        """

    @abstractmethod
    def shift(self, split: Split) -> Shift:
        """How the images of a part are made worse.

        Raises:
            UsageError: they are not.
        """
