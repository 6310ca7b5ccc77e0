"""Floor 5: quality of predictions: proper scores, calibration, intervals, out-of-distribution detection.

Classification metrics take probabilities, never logits, in one of two forms: ``(N, ..., C)`` with integer targets
``(N, ...)``, or the probability of label 1, of any shape, with 0/1 targets of the same shape. Values are scalar tensors
in float32 at least; ``classification_report``, ``regression_report`` and ``ood_report`` collect them as plain numbers.
"""

from vogn.metrics.bootstrap import BootstrapInterval, bootstrap_interval
from vogn.metrics.brier_decomposition import BrierDecomposition, brier_decomposition
from vogn.metrics.calibration_error import adaptive_ece, classwise_ece, debiased_ece
from vogn.metrics.classification import accuracy, brier, nll
from vogn.metrics.classification_report import ClassificationMeter, ClassificationReport, classification_report
from vogn.metrics.crps import gaussian_crps, gaussian_mixture_crps, sample_crps
from vogn.metrics.intervals import (
    QuantileCalibration,
    gaussian_mixture_pit,
    gaussian_pit,
    interval_coverage,
    interval_score,
    interval_width,
    quantile_calibration,
    quantile_calibration_error,
    sharpness,
)
from vogn.metrics.ood import aupr, auroc, fpr_at_recall
from vogn.metrics.ood_report import OODFigures, OODReport, ood_report
from vogn.metrics.regression import gaussian_nll, rmse
from vogn.metrics.regression_report import RegressionMeter, RegressionReport, regression_report
from vogn.metrics.reliability import Reliability, ece, reliability
from vogn.metrics.selective import RiskCoverage, aurc, risk_coverage

__all__ = [
    "BootstrapInterval",
    "BrierDecomposition",
    "ClassificationMeter",
    "ClassificationReport",
    "OODFigures",
    "OODReport",
    "QuantileCalibration",
    "RegressionMeter",
    "RegressionReport",
    "Reliability",
    "RiskCoverage",
    "accuracy",
    "adaptive_ece",
    "aupr",
    "auroc",
    "aurc",
    "bootstrap_interval",
    "brier",
    "brier_decomposition",
    "classification_report",
    "classwise_ece",
    "debiased_ece",
    "ece",
    "fpr_at_recall",
    "gaussian_crps",
    "gaussian_mixture_crps",
    "gaussian_mixture_pit",
    "gaussian_nll",
    "gaussian_pit",
    "interval_coverage",
    "interval_score",
    "interval_width",
    "nll",
    "ood_report",
    "quantile_calibration",
    "quantile_calibration_error",
    "regression_report",
    "reliability",
    "risk_coverage",
    "rmse",
    "sample_crps",
    "sharpness",
]
