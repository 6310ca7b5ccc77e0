"""Real targets: RMSE, NLL, CRPS and intervals in the unit of the targets; quantile diagrams."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vogn.cli.contenders import RECIPES, Recipe
from vogn.cli.errors import UsageError
from vogn.cli.networks import ModelSpec, RealModelSpec
from vogn.cli.observation import Observation, RealObservation
from vogn.cli.position import RealPosition, RunPosition
from vogn.cli.settings import Settings
from vogn.cli.task import Evaluation, Task
from vogn.data import RealData, Split, epoch_batches, load_task_data
from vogn.likelihoods import Gaussian
from vogn.metrics import RegressionMeter, RegressionReport
from vogn.optim.evidence_tuning import FIRST_NOISE, FIRST_PRIOR
from vogn.predict import Predictive
from vogn.report import Column, Shift
from vogn.report.figures import intervals_figure, quantiles_figure

LEVEL = 0.9
"""Probability of predicted intervals."""
_STEPS, _FEWEST_EPOCHS, _MOST_EPOCHS = 2000, 10, 400
_WARMUP = 0.05
_AT_ONCE = 4096
_MOST_LINES = 50
_COLD = frozenset({"vadam", "evon", "mfac", "ggt", "tonga", "seng", "hylo", "fngd"})
"""Methods whose curvature of few or squared gradients leaves weights undetermined: at temperature 1 the noise of those
drowns the network, so they sample at a lower one."""
_COLD_TEMPERATURE = 0.1
_SMALLEST_NOISE = 1e-6
"""In standard deviations of the targets: single precision has no finer ones."""


class Regression(Task[RealData]):
    """See :class:`vogn.cli.task.Task`. The network sees standardised targets; everything shown is in their own unit."""

    NAME = "regression"
    COLUMNS = (
        Column("rmse", "RMSE", unit=True),
        Column("nll", "NLL"),
        Column("crps", "CRPS", unit=True),
        Column("coverage", "90 %\ncovered", "", percent=True),
        Column("width", "90 %\nwidth", "", unit=True),
        Column("quantile_calibration_error", "quant.\nerror"),
    )
    KEEPS_SAMPLES = True
    CURVE = "rmse"

    def settled(self, settings: Settings, given: Mapping[str, Any]) -> Settings:
        """Epochs for about 2000 steps, at least 10 and at most 400; a twentieth of them to warm up."""
        if settings.noise is not None:
            self._standard_noise(settings.noise)
        batches = len(epoch_batches(len(self.data.train), settings.batch_size, settings.seed, 0))
        if given.get("epochs") is None:
            epochs = min(max(math.ceil(_STEPS / batches), _FEWEST_EPOCHS), _MOST_EPOCHS)
            settings = replace(settings, epochs=epochs)
        if given.get("warmup_epochs") is None:
            settings = replace(settings, warmup_epochs=_WARMUP * settings.epochs)
        return replace(settings, task=self.NAME)

    def lines_apart(self, epochs: int) -> int:
        return max(1, epochs // _MOST_LINES)

    def headline(self) -> str:
        scale = self.data.targets
        return f"targets of mean {scale.mean:.4g} and standard deviation {scale.std:.4g}"

    def spec(self, settings: Settings) -> ModelSpec:
        return RealModelSpec.of(settings, self.data.input_shape, 1)

    def recipe(self, method: str, variational: bool) -> Recipe:
        """Those of the scikit-learn estimators, found on regressions; else the command line's own options."""
        from vogn.sklearn.recipes import RECIPES as REAL_RECIPES
        from vogn.sklearn.recipes import recipe

        general = RECIPES.get(method, Recipe())
        options = recipe(method, variational, {} if method in REAL_RECIPES else general.options)
        temperature = _COLD_TEMPERATURE if variational and method in _COLD else 1.0
        return Recipe(FIRST_PRIOR / temperature, temperature, options, general.freeze_epochs, evidence=True)

    def observation(self, settings: Settings, device: torch.device) -> Observation:
        if settings.noise is not None:
            return RealObservation(Gaussian(self._standard_noise(settings.noise)))
        likelihood = Gaussian(noise="learn", initial=FIRST_NOISE)
        assert likelihood.log_noise is not None
        likelihood.log_noise.data = likelihood.log_noise.data.to(device)
        return RealObservation(likelihood)

    def _standard_noise(self, noise: float) -> float:
        found = noise / self.data.targets.std
        if not _SMALLEST_NOISE <= found <= 1 / _SMALLEST_NOISE:
            raise UsageError(
                f"--noise is {noise:g}, but the targets have standard deviation {self.data.targets.std:g}; give the "
                "standard deviation of the noise in the unit of the targets"
            )
        return found

    def position(self, **values: Any) -> RunPosition:
        return RealPosition(**values)

    def identity(self) -> dict[str, Any]:
        return {"targets": self.data.targets.to_dict()}

    def predicted(self, found: Predictive) -> Predictive:
        scale = self.data.targets
        noise = float(torch.as_tensor(found.likelihood.noise).detach())  # type: ignore[attr-defined]
        return replace(
            found,
            mean=scale.undo(found.mean),
            variance=found.variance.double() * scale.std**2,
            samples=None if found.samples is None else scale.undo(found.samples),
            likelihood=Gaussian(noise * scale.std),
            aleatoric=found.aleatoric.double() * scale.std**2,
            standard_error=None if found.standard_error is None else found.standard_error.double() * scale.std,
        )

    def targets(self, split: Split) -> Tensor:
        return self.data.targets.undo(split.y)

    def scores(self, found: Predictive, targets: Tensor) -> RegressionReport:
        meter = RegressionMeter(LEVEL)
        y = targets.to(found.mean.device)
        for start in range(0, len(y), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            mixture: dict[str, Tensor] = {}
            if found.samples is not None:
                mixture = {"components": found.samples[:, part], "noise_variance": found.aleatoric[part]}
            meter.update(found.mean[part], found.variance[part], y[part], **mixture)
        return meter.report()

    def training_figures(self, position: RunPosition) -> dict[str, float]:
        assert isinstance(position, RealPosition)
        std = self.data.targets.std
        return {
            "loss": position.loss_sum / position.seen + math.log(std),
            "rmse": math.sqrt(position.squares / position.seen) * std,
        }

    def figures(self, scores: Any) -> dict[str, float]:
        return {"loss": scores.nll, "rmse": scores.rmse}

    def pictures(self, rows: Sequence[Evaluation], x: Tensor) -> dict[str, Any]:
        named = [(f"{row.label}, {row.how}", row.predictive) for row in rows]
        return {
            "quantiles.png": quantiles_figure(named, rows[0].targets),
            "intervals.png": intervals_figure(named, rows[0].targets, x),
        }

    def arrays(self, found: Predictive) -> dict[str, np.ndarray]:
        """What `vogn predict` writes.

        ``mean``, ``variance`` and its parts ``aleatoric`` (noise) and ``epistemic`` (weights), ``low`` and ``high``:
        ends of the central intervals of probability ``level``; all but that ``(N,)`` in the unit of the targets, or its
        square.
        """
        low, high = found.interval(LEVEL)
        columns = {
            "mean": found.mean,
            "variance": found.variance,
            "aleatoric": found.aleatoric.expand_as(found.mean),
            "epistemic": found.epistemic,
            "low": low,
            "high": high,
        }
        return {name: values.double().cpu().reshape(-1).numpy() for name, values in columns.items()} | {
            "level": np.asarray(LEVEL)
        }

    def other(self, settings: Settings) -> RealData:
        data = load_task_data(
            settings.data,
            self.NAME,
            image_size=settings.image_size,
            augment=settings.augment,
            preprocessing=self.data.preprocessing,
            targets=self.data.targets,
        )
        assert isinstance(data, RealData)
        return data

    def shift(self, split: Split) -> Shift:
        raise UsageError("--shift measures classifiers on images that get worse; this run predicts numbers")
