"""Classes: accuracy, NLL, Brier score and calibration error; reliability diagrams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vogn.cli.contenders import RECIPES, Recipe
from vogn.cli.errors import UsageError
from vogn.cli.networks import ModelSpec
from vogn.cli.observation import Observation
from vogn.cli.position import Position, RunPosition
from vogn.cli.settings import Settings
from vogn.cli.task import Evaluation, Task
from vogn.data import Data, Split, load_data
from vogn.data.splits import numbered
from vogn.metrics import accuracy, brier, ece, nll
from vogn.predict import Predictive
from vogn.report import Column, Shift
from vogn.report.figures import reliability_figure


@dataclass(frozen=True)
class ClassScores:
    """Quality of class probabilities on one part of the data.

    Args:
        accuracy: fraction of correct predictions.
        nll: mean negative log-likelihood in nats.
        brier: Brier score, from 0 to 2.
        ece: expected calibration error, 15 bins.
    """

    accuracy: float
    nll: float
    brier: float
    ece: float

    @classmethod
    def of(cls, probabilities: Tensor, targets: Tensor) -> ClassScores:
        """Scores of probabilities ``(N, C)`` for labels ``(N,)``."""
        targets = targets.to(probabilities.device)
        return cls(*(float(metric(probabilities, targets)) for metric in (accuracy, nll, brier, ece)))

    def figures(self) -> dict[str, float]:
        """All of them by name."""
        return asdict(self)


class Classification(Task[Data]):
    """See :class:`vogn.cli.task.Task`."""

    NAME = "classification"
    COLUMNS = (
        Column("accuracy", "accuracy", "higher", percent=True),
        Column("nll", "NLL"),
        Column("brier", "Brier"),
        Column("ece", "ECE"),
    )
    KEEPS_SAMPLES = False
    CURVE = "accuracy"

    def settled(self, settings: Settings, given: Mapping[str, Any]) -> Settings:
        if settings.noise is not None:
            raise UsageError(
                f"--noise is the noise of numbers, but {settings.data} has class labels; leave it out, or give "
                "--task regression"
            )
        return replace(settings, task=self.NAME)

    def headline(self) -> str:
        return f"{self.data.num_classes} classes"

    def spec(self, settings: Settings) -> ModelSpec:
        return ModelSpec.of(settings, self.data.input_shape, self.data.num_classes)

    def recipe(self, method: str, variational: bool) -> Recipe:
        return RECIPES.get(method, Recipe())

    def observation(self, settings: Settings, device: torch.device) -> Observation:
        return Observation()

    def position(self, **values: Any) -> RunPosition:
        return Position(**values)

    def identity(self) -> dict[str, Any]:
        return {"class_names": list(self.data.class_names)}

    def predicted(self, found: Predictive) -> Predictive:
        return found

    def targets(self, split: Split) -> Tensor:
        return split.y

    def scores(self, found: Predictive, targets: Tensor) -> ClassScores:
        return ClassScores.of(found.mean, targets)

    def training_figures(self, position: RunPosition) -> dict[str, float]:
        assert isinstance(position, Position)
        return {"loss": position.loss_sum / position.seen, "accuracy": position.correct / position.seen}

    def figures(self, scores: Any) -> dict[str, float]:
        return {"loss": scores.nll, "accuracy": scores.accuracy}

    def pictures(self, rows: Sequence[Evaluation], x: Tensor) -> dict[str, Any]:
        named = [(f"{row.label}, {row.how}", row.predictive.mean, row.targets) for row in rows]
        return {"reliability.png": reliability_figure(named)}

    def arrays(self, found: Predictive) -> dict[str, np.ndarray]:
        """What `vogn predict` writes.

        ``probabilities`` ``(N, C)``, ``labels`` ``(N,)``, ``variance`` ``(N, C)`` of the probabilities between weight
        samples, ``entropy`` ``(N,)`` in nats, and ``class_names`` ``(C,)``.
        """
        return {
            "probabilities": found.mean.cpu().numpy(),
            "labels": found.mean.argmax(dim=1).cpu().numpy(),
            "variance": found.variance.cpu().numpy(),
            "entropy": torch.special.entr(found.mean).sum(dim=-1).cpu().numpy(),
            "class_names": np.asarray(self.data.class_names),
        }

    def other(self, settings: Settings) -> Data:
        data = load_data(
            settings.data,
            image_size=settings.image_size,
            augment=settings.augment,
            preprocessing=self.data.preprocessing,
        )
        spec, mine, theirs = settings.data, self.data.class_names, data.class_names
        if len(mine) != len(theirs):
            raise UsageError(f"class-count mismatch: {spec} has {len(theirs)} classes, the run has {len(mine)}")
        if mine != theirs and numbered(len(mine)) not in (mine, theirs):
            pair = next((a, b) for a, b in zip(mine, theirs, strict=True) if a != b)
            raise UsageError(f"class-name mismatch: {spec} has the class {pair[1]!r} where the run has {pair[0]!r}")
        return data

    def shift(self, split: Split) -> Shift:
        """8-bit images are kept between 0 and 1, others in the range that they have."""
        if split.x.ndim != 4:
            raise UsageError(f"--shift is for images; the inputs of this run have shape {tuple(split.x.shape[1:])}")
        preprocessing = self.data.preprocessing
        mean, std = preprocessing.mean, preprocessing.std
        if preprocessing.eight_bit:
            return Shift(mean=mean, std=std)
        ends = [_raw_ends(x, mean, std) for x in (self.data.train.x, split.x)]
        return Shift((min(low for low, _ in ends), max(high for _, high in ends)), mean, std)


def _raw_ends(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[float, float]:
    shape = (1, len(mean), 1, 1)
    raw = x * torch.tensor(std).view(shape) + torch.tensor(mean).view(shape)
    return float(raw.min()), float(raw.max())
