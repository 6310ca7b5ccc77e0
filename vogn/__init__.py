"""vogn: one curvature engine, read as a natural-gradient preconditioner or as a Gaussian posterior.

The flag ``variational`` switches between the two readings, on the same checkpoint, between any two steps.
"""

from __future__ import annotations

from vogn import calibration, errors, likelihoods, metrics, plots
from vogn.capture.objective import Objective
from vogn.check import check_posterior, simulation_based_calibration
from vogn.optim import (
    EKFAC,
    EVON,
    FNGD,
    GGT,
    IVON,
    KFAC,
    METHODS,
    MFAC,
    SENG,
    SKFAC,
    SLANG,
    SMW,
    SNGD,
    TONGA,
    VOGN,
    VON,
    GramGaussNewton,
    HyLo,
    KalmanNaturalGradient,
    LiSSA,
    NaturalGradient,
    VAdam,
)
from vogn.optim.check_curvature import check_curvature
from vogn.optim.damping_search import DampingSearch, damping_search
from vogn.optim.laplace import laplace
from vogn.optim.preview import coverage
from vogn.optim.prior_tuner import PriorTuner, layer_groups
from vogn.optim.range_test import RangeTest, learning_rate_range_test
from vogn.optim.sample_size import effective_sample_size
from vogn.optim.temperature_search import TemperatureSearch, temperature_search
from vogn.posterior import (
    SWAG,
    Ensemble,
    GaussianPosterior,
    MCDropout,
    Mixture,
    Point,
    Posterior,
    load_posterior,
    log_evidence,
    tune_prior_precision,
    with_prior_precision,
)
from vogn.posterior import Prior as Prior
from vogn.predict import BatchNormCalibration, Predictive, ood_score, ood_scores, predict, update_batchnorm

__version__ = "0.1.0"

__all__ = [
    "BatchNormCalibration",
    "DampingSearch",
    "EKFAC",
    "EVON",
    "Ensemble",
    "FNGD",
    "GGT",
    "GaussianPosterior",
    "GramGaussNewton",
    "HyLo",
    "IVON",
    "KFAC",
    "KalmanNaturalGradient",
    "LiSSA",
    "MCDropout",
    "METHODS",
    "MFAC",
    "Mixture",
    "NaturalGradient",
    "Objective",
    "Point",
    "Posterior",
    "Predictive",
    "Prior",
    "PriorTuner",
    "RangeTest",
    "SENG",
    "SKFAC",
    "SLANG",
    "SMW",
    "SNGD",
    "SWAG",
    "TONGA",
    "TemperatureSearch",
    "VAdam",
    "VOGN",
    "VON",
    "calibration",
    "check_curvature",
    "check_posterior",
    "coverage",
    "damping_search",
    "effective_sample_size",
    "errors",
    "laplace",
    "layer_groups",
    "learning_rate_range_test",
    "likelihoods",
    "load_posterior",
    "log_evidence",
    "metrics",
    "ood_score",
    "ood_scores",
    "plots",
    "predict",
    "simulation_based_calibration",
    "temperature_search",
    "tune_prior_precision",
    "update_batchnorm",
    "with_prior_precision",
]
