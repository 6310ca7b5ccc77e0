"""Thompson sampling with the weight posterior of any natural-gradient method."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from vogn.optim.methods import METHODS
from vogn.posterior import GaussianPosterior
from vogn.rl.neural_bandit import NeuralBandit
from vogn.rl.recipes import recipe_of


class NeuralThompson(NeuralBandit):
    """Draw weights from the posterior, pull the arm that is best for them.

    The posterior is that of the rounds so far: ``ess`` grows with them, and the prior ``N(0, I / prior_precision)``
    stays, so that the precision of a weight is the curvature summed over all rounds plus the prior's.

    Args:
        network: see :class:`NeuralBandit`.
        features: ``d``.
        arms: ``K``.
        method: name in :data:`vogn.METHODS`.
        options: of the method; what is not given is that of :func:`vogn.rl.recipes.recipe_of`.
        prior_precision: > 0, the reciprocal of a weight's variance: about the width of the layers.
        temperature: of the rewards, > 0: ``ess = rounds / temperature``. Below 1 training is less noisy, and there is
            less exploration.
        resample: draw weights for every ``"decision"``, or once after every ``"update"`` for all decisions up to the
            next.
        **common: see :class:`NeuralBandit`.

    Raises:
        ValueError: for an unknown method or a number out of range.

    Source: Thompson (1933); Riquelme, Tucker, Snoek (2018), "Deep Bayesian Bandits Showdown".
    """

    def __init__(
        self,
        network: nn.Module,
        features: int,
        arms: int,
        *,
        method: str = "vogn",
        options: Mapping[str, Any] | None = None,
        prior_precision: float = 50.0,
        temperature: float = 0.1,
        resample: Literal["decision", "update"] = "decision",
        **common: Any,
    ) -> None:
        super().__init__(network, features, arms, **common)
        if resample not in ("decision", "update"):
            raise ValueError(f"resample={resample!r}: choose 'decision' or 'update'")
        for name, value in (("prior_precision", prior_precision), ("temperature", temperature)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be a positive finite number")
        self.prior_precision, self.temperature, self.resample = prior_precision, temperature, resample
        settings = recipe_of(method) | dict(options or {})
        self.optimizer = METHODS[method].build(
            network, ess=1.0, weight_decay=prior_precision, seed=self.seed, **settings
        )
        self.decisions = 0
        self._posterior: GaussianPosterior | None = None
        self._weights: dict[str, Tensor] = {}

    def posterior(self) -> GaussianPosterior:
        """Of the weights given all rounds so far."""
        if self._posterior is None:
            self._posterior = self.optimizer.posterior()
        return self._posterior

    def fit(self) -> None:
        """Steps of the natural-gradient method at the sample size of now."""
        ess = self.rounds / self.temperature
        for group in self.optimizer.param_groups:
            group["ess"], group["weight_decay"] = ess, self.prior_precision / ess
        for _ in range(self.steps):
            x, arms, rewards = self.batch()
            self.optimizer.zero_grad()
            with self.optimizer.sampled_params():
                self.loss(self.network(x), arms, rewards).backward()
            self.optimizer.step()
        self._posterior, self._weights = None, {}

    @torch.no_grad()
    def decide(self, x: Tensor) -> int:
        """Draw ``k`` of the seed is that of decision ``k``."""
        self.decisions += 1
        if self.resample == "decision" or not self._weights:
            draw = self.posterior().sample(1, seed=self.seed, start=self.decisions)
            self._weights = {name: tensor[0] for name, tensor in draw.items()}
        return int(functional_call(self.network, self._weights, (x,)).argmax())

    def learnt_state(self) -> dict[str, Any]:
        """See :meth:`NeuralBandit.learnt_state`."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "decisions": self.decisions,
            "weights": dict(self._weights),
        }

    def load_learnt_state(self, state: Mapping[str, Any]) -> None:
        """See :meth:`NeuralBandit.load_learnt_state`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.decisions, self._posterior, self._weights = int(state["decisions"]), None, dict(state["weights"])
