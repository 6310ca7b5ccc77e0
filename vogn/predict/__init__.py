"""Floor 5: predictions from a posterior over weights; knows only the :class:`vogn.posterior.Posterior` protocol."""

from vogn.predict.batchnorm import update_batchnorm
from vogn.predict.calibration import BatchNormCalibration
from vogn.predict.jacobians import jacobian
from vogn.predict.methods import METHODS
from vogn.predict.ood import OOD_SCORES, ood_score, ood_scores
from vogn.predict.policies import POLICIES
from vogn.predict.prediction import predict
from vogn.predict.predictive import Predictive

__all__ = [
    "METHODS",
    "OOD_SCORES",
    "POLICIES",
    "BatchNormCalibration",
    "Predictive",
    "jacobian",
    "ood_score",
    "ood_scores",
    "predict",
    "update_batchnorm",
]
