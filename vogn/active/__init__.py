from vogn.active.acquisitions import *
from vogn.active.acquisition import *
from vogn.active.batch_acquisitions import *
from vogn.active.batchbald import JointSelection, batchbald
from vogn.active.core_set import k_centres
from vogn.active.epig import epig, gaussian_epig
from vogn.active.joint_gaussian import joint_information_gain
from vogn.active.scores import (
    bald,
    entropy,
    information_gain,
    margin,
    mean_deviation,
    predictive_variance,
    variation_ratio,
)
