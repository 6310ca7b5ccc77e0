"""Floor 4: distributions over weights: the Gaussian read from a curvature and its prior, ensembles, SWAG, dropout,
mixtures, products of posteriors (merging), and the protocol of them all."""

from vogn.posterior.block import PosteriorBlock
from vogn.posterior.dropout import MCDropout
from vogn.posterior.ensemble import Ensemble, Point
from vogn.posterior.evidence import log_evidence, tune_prior_precision, with_prior_precision
from vogn.posterior.gaussian import GaussianPosterior
from vogn.posterior.loading import load_posterior
from vogn.posterior.merging import merge, task_arithmetic, unlearn
from vogn.posterior.mixture import Mixture
from vogn.posterior.prior import Prior
from vogn.posterior.protocol import Posterior
from vogn.posterior.swag import SWAG

__all__ = [
    "Ensemble",
    "GaussianPosterior",
    "MCDropout",
    "Mixture",
    "Point",
    "Posterior",
    "PosteriorBlock",
    "Prior",
    "SWAG",
    "load_posterior",
    "log_evidence",
    "merge",
    "task_arithmetic",
    "tune_prior_precision",
    "unlearn",
    "with_prior_precision",
]
