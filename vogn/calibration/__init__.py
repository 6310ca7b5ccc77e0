"""Floor 6: predictions repaired on held-out examples, and sets and intervals with a guarantee."""

from vogn.calibration.conformal_intervals import ConformalGaussian, ConformalQuantiles
from vogn.calibration.conformal_quantile import conformal_quantile
from vogn.calibration.conformal_sets import ConformalSets, set_coverage, set_size
from vogn.calibration.files import KINDS, RECALIBRATORS, from_dict, load, save
from vogn.calibration.fitted import Fitted
from vogn.calibration.histogram import HistogramBinning
from vogn.calibration.isotonic import IsotonicRecalibration
from vogn.calibration.platt import PlattScaling
from vogn.calibration.recalibrator import Recalibrator
from vogn.calibration.sample_temperature import SampleTemperatureScaling
from vogn.calibration.temperature import TemperatureScaling
from vogn.calibration.variance import VarianceScaling
from vogn.calibration.vector import VectorScaling

__all__ = [
    "KINDS",
    "RECALIBRATORS",
    "ConformalGaussian",
    "ConformalQuantiles",
    "ConformalSets",
    "Fitted",
    "HistogramBinning",
    "IsotonicRecalibration",
    "PlattScaling",
    "Recalibrator",
    "SampleTemperatureScaling",
    "TemperatureScaling",
    "VarianceScaling",
    "VectorScaling",
    "conformal_quantile",
    "from_dict",
    "load",
    "save",
    "set_coverage",
    "set_size",
]
