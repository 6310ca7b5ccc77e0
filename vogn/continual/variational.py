"""Variational continual learning by natural gradients: the posterior becomes the next prior, mean and precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vogn.continual.method import ContinualMethod, Loader
from vogn.continual.posterior_state import posterior_from_state, posterior_state
from vogn.continual.ranges import check_not_negative, check_positive
from vogn.errors import UnsupportedObservationError
from vogn.likelihoods import Likelihood
from vogn.optim.base import NaturalGradient
from vogn.optim.methods import METHODS
from vogn.optim.prior_handover import use_as_prior
from vogn.posterior import GaussianPosterior
from vogn.predict import predict

HANDOVER = ("vogn", "von", "ivon", "evon", "kfac", "ekfac", "slang")
"""Methods that take a posterior as their prior."""


class VariationalContinualLearning(ContinualMethod):
    """Every task is learnt by a variational method whose prior is the posterior of the tasks before.

    ``q_t = argmin_q  E_q[sum of losses] + KL(q || q_(t-1))``: there is no penalty, for
    :func:`vogn.optim.prior_handover.use_as_prior` puts ``q_(t-1)`` into samples and steps. With a Kronecker-factored
    method the precision of ``q_(t-1)`` is one too; with ``variational=False`` it is the Laplace approximation.

    Args:
        model: see :class:`ContinualMethod`.
        likelihood: of all tasks.
        method: name in :data:`vogn.METHODS`: ``"vogn"``, ``"von"``, ``"ivon"``, ``"evon"``, ``"kfac"``, ``"ekfac"`` or
            ``"slang"``.
        prior_precision: of the first prior ``N(0, I / prior_precision)``, > 0.
        temperature: of the data, > 0: ``ess = examples / temperature``. Below 1 every posterior is narrower.
        strength: of what is known of earlier tasks in the steps of the mean, >= 0; 1 is Bayes' rule. See
            :func:`vogn.optim.prior_handover.use_as_prior`.
        samples: weight samples of predictions, >= 0; 0 predicts with the mean.
        seed: of all noise.
        **options: of the method: ``lr``, ``momentum``, ``mc_samples``, ...

    Raises:
        ValueError: for an unknown method or a number out of range.

    Source: Nguyen, Li, Bui, Turner (2018), "Variational Continual Learning"; Osawa et al. (2019); Loo, Swaroop, Turner
    (2021), "Generalized Variational Continual Learning", for temperature and strength.
    """

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        *,
        method: str = "vogn",
        prior_precision: float = 1.0,
        temperature: float = 1.0,
        strength: float = 1.0,
        samples: int = 16,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(model, likelihood)
        self.trained_by = ""
        if method not in HANDOVER:
            raise ValueError(f"method={method!r} is unknown; choose {', '.join(HANDOVER)}")
        check_positive(prior_precision=prior_precision, temperature=temperature)
        check_not_negative(strength=strength)
        if samples < 0:
            raise ValueError(f"samples={samples} must be at least 0 (0: predict with the mean)")
        self.method, self.options = method, options
        self.prior_precision, self.temperature = prior_precision, temperature
        self.strength, self.samples, self.seed = strength, samples, seed
        self.posterior: GaussianPosterior | None = None
        """Of all tasks that have ended; the prior of the present one."""
        self._running: NaturalGradient | None = None
        self._tasks = 0

    def optimizer(self) -> NaturalGradient:
        """The method with the posterior of earlier tasks as its prior.

        Raises:
            UnsupportedObservationError: for a method that cannot have one, or where several processes train.
        """
        ess = self.examples / self.temperature
        options = {"seed": self.seed + self._tasks} | self.options
        found = METHODS[self.method].build(
            self.model, ess=ess, weight_decay=self.prior_precision / ess, **options
        )
        if found.replicas.size > 1:
            raise UnsupportedObservationError(
                "a posterior as prior is not supported where several processes train: learn tasks in one process"
            )
        if self.posterior is not None:
            use_as_prior(found, self.posterior, strength=self.strength)
        self._running = found
        return found

    def penalty(self) -> Tensor:
        """Zero: the prior is in the optimizer."""
        return self.zero()

    def after_task(self, loader: Loader) -> None:
        """The posterior becomes the next prior; the data are not looked at again.

        Raises:
            RuntimeError: if no optimizer of :meth:`optimizer` has trained the task.
        """
        if self._running is None:
            raise RuntimeError("the task was not trained by the optimizer of method.optimizer(): there is no posterior")
        self.posterior = self._running.posterior()
        self._running.close()
        self._running = None
        self._tasks += 1

    def outputs(self, x: Tensor) -> Tensor:
        """Class probabilities, averaged over weight samples of the latest posterior; before the first one, and without
        samples, outputs at the mean."""
        if self.samples == 0 or self.posterior is None:
            return super().outputs(x)
        with torch.no_grad():
            return predict(self.model, self.posterior, x, samples=self.samples, keep_samples=False).mean

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`ContinualMethod.state_dict`."""
        posterior = None if self.posterior is None else posterior_state(self.posterior)
        return super().state_dict() | {"tasks": self._tasks, "posterior": posterior}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`ContinualMethod.load_state_dict`."""
        super().load_state_dict(state)
        self._tasks = int(state["tasks"])
        self.posterior = None if state["posterior"] is None else posterior_from_state(state["posterior"])
