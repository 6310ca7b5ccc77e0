"""Floor 6: active learning: which examples of a pool to ask about, and a posterior that learns as it asks."""

from vogn.active.acquisition import Acquisition, Pointwise, Selection
from vogn.active.acquisitions import (
    ACQUISITIONS,
    BALD,
    EPIG,
    AcquisitionInfo,
    Entropy,
    InformationGain,
    Margin,
    MeanDeviation,
    PredictiveVariance,
    Random,
    VariationRatio,
)
from vogn.active.asking import Oracle
from vogn.active.baal_heuristic import BaalHeuristic
from vogn.active.batch_acquisitions import BatchBALD, BatchInformationGain, CoreSet
from vogn.active.batchbald import JointSelection, batchbald
from vogn.active.candidates import Candidates
from vogn.active.core_set import k_centres
from vogn.active.epig import epig, gaussian_epig
from vogn.active.errors import LabelError, PoolError, PoolExhaustedError
from vogn.active.joint_gaussian import joint_information_gain
from vogn.active.learner import ActiveLearner
from vogn.active.natural_gradient import NaturalGradientMethod
from vogn.active.pool import ArrayPool, DatasetPool, Pool
from vogn.active.posterior_method import PosteriorMethod, Refit
from vogn.active.predicted import PredictedCandidates
from vogn.active.query_strategy import QueryStrategy
from vogn.active.result import ActiveResult
from vogn.active.scores import (
    bald,
    entropy,
    information_gain,
    margin,
    mean_deviation,
    predictive_variance,
    variation_ratio,
)
from vogn.active.watching import Watcher, progress_bar
from vogn.errors import StoppedError

__all__ = [
    "ACQUISITIONS",
    "AcquisitionInfo",
    "Acquisition",
    "ActiveLearner",
    "ActiveResult",
    "ArrayPool",
    "BALD",
    "BaalHeuristic",
    "BatchBALD",
    "BatchInformationGain",
    "Candidates",
    "CoreSet",
    "DatasetPool",
    "EPIG",
    "Entropy",
    "InformationGain",
    "JointSelection",
    "LabelError",
    "Margin",
    "MeanDeviation",
    "NaturalGradientMethod",
    "Oracle",
    "Pointwise",
    "Pool",
    "PoolError",
    "PoolExhaustedError",
    "PosteriorMethod",
    "PredictedCandidates",
    "PredictiveVariance",
    "QueryStrategy",
    "Random",
    "Refit",
    "Selection",
    "StoppedError",
    "VariationRatio",
    "Watcher",
    "bald",
    "batchbald",
    "entropy",
    "epig",
    "gaussian_epig",
    "information_gain",
    "joint_information_gain",
    "k_centres",
    "margin",
    "mean_deviation",
    "predictive_variance",
    "progress_bar",
    "variation_ratio",
]
