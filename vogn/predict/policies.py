"""Which batch norm statistics a weight sample is used with, by name."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Mapping

from torch import Tensor, nn

from vogn.posterior.protocol import Posterior
from vogn.predict.calibration import BatchNormCalibration
from vogn.predict.evaluation import batchnorm_layers, weights_for

StatisticsOf = Callable[[Mapping[str, Tensor], "int | None"], Mapping[str, Tensor]]
"""(weights, index of the draw or ``None`` for the mean) to values of buffers; buffers not named stay the model's."""

Policy = Callable[[nn.Module, Posterior, "BatchNormCalibration | None", int], StatisticsOf]
"""(model, posterior, calibration, seed) to :data:`StatisticsOf`."""

_WARNED: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def of_the_mean(
    model: nn.Module, posterior: Posterior, calibration: BatchNormCalibration | None, seed: int
) -> StatisticsOf:
    """One set for all weight samples: that of the mean weights; without calibration the model's running statistics."""
    if calibration is None:
        return lambda weights, draw: {}
    mean = weights_for(model, posterior.mean())
    statistics = calibration.statistics(model, mean, seed=seed, draw=None)
    return lambda weights, draw: statistics


def of_each_sample(
    model: nn.Module, posterior: Posterior, calibration: BatchNormCalibration | None, seed: int
) -> StatisticsOf:
    """Every weight sample with its own."""
    assert calibration is not None
    return lambda weights, draw: calibration.statistics(model, weights, seed=seed, draw=draw)


POLICIES: dict[str, Policy] = {"mean": of_the_mean, "recalibrate": of_each_sample}
"""Value of ``batchnorm=`` to implementation."""


def choose(batchnorm: str | None, calibration: BatchNormCalibration | None) -> Policy:
    """The policy of that name; by default what the calibration allows.

    Raises:
        ValueError: for an unknown name, or ``"recalibrate"`` without calibration.
    """
    if batchnorm is None:
        return of_the_model if calibration is None else of_each_sample
    if batchnorm not in POLICIES:
        raise ValueError(f"unknown batchnorm policy {batchnorm!r}; known: {', '.join(sorted(POLICIES))}, or None")
    if batchnorm == "recalibrate" and calibration is None:
        raise ValueError(
            'batchnorm="recalibrate" estimates statistics for every weight sample and needs inputs for it; pass '
            "calibration=, a few hundred training inputs in batches or a loader of them"
        )
    return POLICIES[batchnorm]


def of_the_model(
    model: nn.Module, posterior: Posterior, calibration: BatchNormCalibration | None, seed: int
) -> StatisticsOf:
    """The model's running statistics, with a warning, once per model, if other weights than the mean meet them."""
    if model in _WARNED or not batchnorm_layers(model):
        return lambda weights, draw: {}

    def statistics(weights: Mapping[str, Tensor], draw: int | None) -> Mapping[str, Tensor]:
        if draw == 0:
            mean = weights_for(model, posterior.mean())
            if any(not mean[name].equal(weight) for name, weight in weights.items()):
                _WARNED.add(model)
                names = list(batchnorm_layers(model))
                warnings.warn(
                    f"the batch norm layers {names[:3]}{' ...' if len(names) > 3 else ''} use one set of running "
                    "statistics for all weight samples, which fits none of them and makes the averaged prediction too "
                    "uncertain; pass calibration= (a few hundred training inputs) to have statistics estimated for "
                    'every weight sample, or batchnorm="mean" to say that the running statistics are meant',
                    stacklevel=7,  # the caller of predict
                )
        return {}

    return statistics
