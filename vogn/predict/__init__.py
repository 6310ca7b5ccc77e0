"""Floor 5: predictions from a posterior over weights; knows only the :class:`vogn.posterior.Posterior` protocol."""

from vogn.predict.batchnorm import update_batchnorm
from vogn.predict.methods import METHODS
from vogn.predict.prediction import predict
from vogn.predict.predictive import Predictive

__all__ = ["METHODS", "Predictive", "predict", "update_batchnorm"]
