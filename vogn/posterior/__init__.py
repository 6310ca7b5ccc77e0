"""Floor 4: distributions over weights. The Gaussian read from a curvature, its prior, and the protocol of them all."""

from vogn.posterior.block import PosteriorBlock
from vogn.posterior.evidence import log_evidence, tune_prior_precision, with_prior_precision
from vogn.posterior.gaussian import GaussianPosterior
from vogn.posterior.prior import Prior
from vogn.posterior.protocol import Posterior

__all__ = [
    "GaussianPosterior",
    "Posterior",
    "PosteriorBlock",
    "Prior",
    "log_evidence",
    "tune_prior_precision",
    "with_prior_precision",
]
