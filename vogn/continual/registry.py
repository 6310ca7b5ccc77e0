"""The named methods: tests, the command line and the documentation iterate this table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from vogn.continual.fromp import FROMP
from vogn.continual.function_distance import FunctionDistance
from vogn.continual.kpriors import KPriors
from vogn.continual.laplace import kronecker_laplace, online_ewc
from vogn.continual.memory_aware_synapses import MemoryAwareSynapses
from vogn.continual.method import ContinualMethod
from vogn.continual.plain import FineTuning
from vogn.continual.replay import Replay
from vogn.continual.synaptic_intelligence import SynapticIntelligence
from vogn.continual.variational import VariationalContinualLearning
from vogn.likelihoods import Likelihood


@dataclass(frozen=True)
class ContinualInfo:
    """One named method.

    Args:
        constructor: ``(model, likelihood, **options)``.
        summary: one line for tables.
        paper: where it comes from.
        penalised: whether it takes ``optimizer=`` and is trained with a penalty.
        strength: the name of its option that says how firmly tasks are kept; ``""`` if it has none.
        recipe: options of the command line's runs: the best of a few on validation parts of permuted digits.
        image_recipe: what differs in its runs on MNIST and CIFAR-10: the best of a few on validation parts of permuted
            MNIST.
    """

    constructor: Callable[..., ContinualMethod]
    summary: str
    paper: str
    penalised: bool = True
    strength: str = "strength"
    recipe: dict[str, Any] = field(default_factory=dict)
    image_recipe: dict[str, Any] = field(default_factory=dict)

    def build(self, model: nn.Module, likelihood: Likelihood, **options: Any) -> ContinualMethod:
        """The method for ``model``."""
        return self.constructor(model, likelihood, **options)


CONTINUAL_METHODS: dict[str, ContinualInfo] = {
    "finetune": ContinualInfo(FineTuning, "nothing is kept: the lower bound", "", strength=""),
    "vcl": ContinualInfo(
        VariationalContinualLearning,
        "VOGN, the diagonal posterior becomes the prior",
        "Nguyen et al. 2018; Osawa et al. 2019",
        penalised=False,
        recipe={"temperature": 0.1, "prior_precision": 10.0},
        image_recipe={"strength": 10.0, "prior_precision": 100.0, "lr": 0.003},
    ),
    "vcl-kfac": ContinualInfo(
        partial(VariationalContinualLearning, method="kfac"),
        "noisy K-FAC, the Kronecker-factored posterior becomes the prior",
        "Zhang et al. 2018, as a prior",
        penalised=False,
        image_recipe={"strength": 3.0, "temperature": 0.3, "prior_precision": 100.0, "lr": 0.01},
    ),
    "ewc": ContinualInfo(
        online_ewc,
        "diagonal Fisher information",
        "Kirkpatrick et al. 2017; Schwarz et al. 2018",
        recipe={"strength": 100.0},
        image_recipe={"strength": 10.0},
    ),
    "kronecker": ContinualInfo(
        kronecker_laplace,
        "Kronecker-factored Laplace, one term per task",
        "Ritter, Botev, Barber 2018",
        recipe={"strength": 30.0},
        image_recipe={"strength": 10.0},
    ),
    "si": ContinualInfo(
        SynapticIntelligence,
        "share of a weight in the fall of the loss",
        "Zenke et al. 2017",
        recipe={"strength": 10.0},
    ),
    "mas": ContinualInfo(
        MemoryAwareSynapses, "slope of the outputs in a weight", "Aljundi et al. 2018", recipe={"strength": 0.01}
    ),
    "l2": ContinualInfo(
        FunctionDistance,
        "outputs on stored inputs",
        "Benjamin et al. 2019",
        recipe={"strength": 10.0, "memory": 40},
    ),
    "fromp": ContinualInfo(
        FROMP,
        "outputs on memorable inputs, in the posterior's metric",
        "Pan et al. 2020",
        recipe={"strength": 100.0, "memory": 40},
    ),
    "kpriors": ContinualInfo(
        KPriors,
        "outputs on memorable inputs, and weights",
        "Khan, Swaroop 2021",
        recipe={"strength": 1.0, "memory": 40},
    ),
    "replay": ContinualInfo(
        Replay, "losses of stored examples", "Robins 1995", strength="", recipe={"memory": 40}
    ),
    "joint": ContinualInfo(
        partial(Replay, memory=None), "losses of all earlier examples: the upper bound", "", strength=""
    ),
}
"""Name to method."""
