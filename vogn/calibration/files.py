"""Everything that is fitted, by its name in files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vogn.calibration.conformal_intervals import ConformalGaussian, ConformalQuantiles
from vogn.calibration.conformal_sets import ConformalSets
from vogn.calibration.fitted import Fitted
from vogn.calibration.histogram import HistogramBinning
from vogn.calibration.isotonic import IsotonicRecalibration
from vogn.calibration.platt import PlattScaling
from vogn.calibration.recalibrator import Recalibrator
from vogn.calibration.sample_temperature import SampleTemperatureScaling
from vogn.calibration.temperature import TemperatureScaling
from vogn.calibration.variance import VarianceScaling
from vogn.calibration.vector import VectorScaling

RECALIBRATORS: Mapping[str, type[Recalibrator]] = {
    kind.kind: kind
    for kind in (TemperatureScaling, VectorScaling, PlattScaling, IsotonicRecalibration, HistogramBinning)
}
"""Name to class, for class probabilities."""

KINDS: Mapping[str, type[Fitted]] = {
    **RECALIBRATORS,
    **{
        kind.kind: kind
        for kind in (SampleTemperatureScaling, VarianceScaling, ConformalSets, ConformalGaussian, ConformalQuantiles)
    },
}
"""Name to class, of everything."""


def from_dict(data: Mapping[str, Any]) -> Fitted:
    """What ``to_dict`` has described, bit for bit.

    Raises:
        ValueError: for something else.
    """
    kind = str(data.get("kind"))
    if kind not in KINDS or not {"options", "numbers"} <= data.keys():
        raise ValueError(f"kind={kind!r} is no description of a recalibration; known kinds: {', '.join(KINDS)}")
    return KINDS[kind].from_dict(data)


def save(fitted: Fitted, path: str | Path) -> None:
    """Write it as JSON.

    Raises:
        RecalibrationError: if it has not been fitted.
    """
    Path(path).write_text(json.dumps(fitted.to_dict(), allow_nan=False))


def load(path: str | Path) -> Fitted:
    """Read what :func:`save` has written.

    Raises:
        ValueError: if the file holds something else.
    """
    try:
        data = json.loads(Path(path).read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a JSON file of a recalibration: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no description of a recalibration")
    return from_dict(data)
