"""Rewards for what a model of the environment has learnt, or got wrong."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from vogn.likelihoods import Gaussian
from vogn.models import mlp
from vogn.optim.methods import METHODS
from vogn.posterior import GaussianPosterior
from vogn.predict import jacobian
from vogn.rl.environments import Environments
from vogn.rl.information_gain import information_gain
from vogn.rl.randomness import generator_from_state, generator_state
from vogn.rl.recipes import recipe_of

MEDIANS = 10
"""Rollouts whose medians scale the bonus."""


class DynamicsBonus(ABC):
    """A perceptron predicts how the state changes, from state and action; all in units of their standard deviations.

    Raw bonuses are divided by the mean of the medians of the last ten rollouts and multiplied by ``scale``.

    Args:
        environments: for the spaces.
        scale: of the bonus in the unit of rewards, > 0.
        noise: standard deviation of the scaled changes given the prediction, > 0.
        hidden: widths of the model's hidden layers, tanh.
        steps: of the model's optimizer on every rollout, >= 1.
        batch_size: >= 1.
        seed: of everything.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        environments: Environments,
        *,
        scale: float = 0.01,
        noise: float = 0.1,
        hidden: tuple[int, ...] = (32,),
        steps: int = 10,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        for name, value in (("scale", scale), ("noise", noise)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be a positive finite number")
        if steps < 1 or batch_size < 1:
            raise ValueError(f"steps={steps} and batch_size={batch_size} must be at least 1")
        self.actions = environments.actions
        width = environments.actions if environments.low is None else len(environments.low)
        assert width is not None
        self.scale, self.likelihood = scale, Gaussian(noise)
        self.steps, self.batch_size, self.seed = steps, batch_size, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model: nn.Module = mlp((environments.features + width, *hidden, environments.features), "tanh")
        self.generator = np.random.default_rng(seed)
        self._inputs: list[Tensor] = []
        self._changes: list[Tensor] = []
        self._medians: deque[float] = deque(maxlen=MEDIANS)
        self._moments: tuple[Tensor, Tensor, Tensor] | None = None
        self._model_ready = False

    @abstractmethod
    def raw(self, inputs: Tensor, changes: Tensor) -> Tensor:
        """Bonuses ``(N,)`` of scaled inputs and changes, before they are divided by their median."""

    @abstractmethod
    def fit(self, inputs: Tensor, changes: Tensor) -> None:
        """One step of the model on a batch of scaled transitions."""

    @abstractmethod
    def model_state(self) -> dict[str, Any]:
        """The optimizer, and whatever else changes."""

    @abstractmethod
    def load_model_state(self, state: Mapping[str, Any]) -> None:
        """Undoes :meth:`model_state`."""

    def rewards(self, observations: Tensor, actions: Tensor, following: Tensor) -> Tensor:
        """See :class:`vogn.rl.acktr.Bonus`; zero before the model has learnt anything."""
        if not self._model_ready:
            return torch.zeros(len(observations))
        found = self.raw(*self._scaled(self._input(observations, actions), following - observations))
        self._medians.append(float(found.median()))
        return self.scale * found / max(sum(self._medians) / len(self._medians), 1e-12)

    def learn(self, observations: Tensor, actions: Tensor, following: Tensor) -> None:
        """Steps on everything seen so far."""
        self._inputs.append(self._input(observations, actions))
        self._changes.append(following - observations)
        inputs, changes = torch.cat(self._inputs), torch.cat(self._changes)
        self._inputs, self._changes = [inputs], [changes]
        self._moments = (inputs.mean(0), inputs.std(0).clamp_min(1e-6), changes.std(0).clamp_min(1e-6))
        scaled_inputs, scaled_changes = self._scaled(inputs, changes)
        for _ in range(self.steps):
            index = torch.from_numpy(self.generator.integers(len(inputs), size=min(self.batch_size, len(inputs))))
            self.fit(scaled_inputs[index], scaled_changes[index])
        self._model_ready = True

    @property
    def seen(self) -> int:
        """Transitions learnt from."""
        return sum(len(rows) for rows in self._inputs)

    def _input(self, observations: Tensor, actions: Tensor) -> Tensor:
        if self.actions is not None:
            actions = functional.one_hot(actions[:, 0].long(), self.actions).float()
        return torch.cat([observations, actions], 1)

    def _scaled(self, inputs: Tensor, changes: Tensor) -> tuple[Tensor, Tensor]:
        assert self._moments is not None
        mean, spread, change = self._moments
        return (inputs - mean) / spread, changes / change

    def state_dict(self) -> dict[str, Any]:
        """See :class:`vogn.rl.acktr.Bonus`."""
        return {
            "model": self.model.state_dict(),
            "inputs": [rows.clone() for rows in self._inputs],
            "changes": [rows.clone() for rows in self._changes],
            "medians": list(self._medians),
            "generator": generator_state(self.generator),
            "learnt": self.model_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :class:`vogn.rl.acktr.Bonus`."""
        self.model.load_state_dict(state["model"])
        self._inputs, self._changes = list(state["inputs"]), list(state["changes"])
        self._medians = deque(state["medians"], maxlen=MEDIANS)
        self.generator = generator_from_state(state["generator"])
        self.load_model_state(state["learnt"])
        self._model_ready = bool(self._inputs)
        if self._inputs:
            inputs, changes = self._inputs[0], self._changes[0]
            self._moments = (inputs.mean(0), inputs.std(0).clamp_min(1e-6), changes.std(0).clamp_min(1e-6))


class InformationGain(DynamicsBonus):
    """VIME: the closed-form KL divergence between the posterior of the dynamics model after and before a transition.

    The posterior, diagonal (``"vogn"``) or Kronecker-factored (``"kfac"``) or of any other method, is learnt by
    variational natural gradients from all transitions so far; the gain is :func:`information_gain`.

    Args:
        environments: see :class:`DynamicsBonus`.
        method: name in :data:`vogn.METHODS`.
        options: of the method; what is not given is that of :func:`vogn.rl.recipes.recipe_of`.
        prior_precision: of the model's weights, > 0.
        temperature: > 0: ``ess = transitions / temperature``.
        seed: of everything.
        **common: see :class:`DynamicsBonus`.

    Source: Houthooft et al. (2016), "VIME: Variational Information Maximizing Exploration", equation 7; Zhang et al.
    (2018), section 5.4, for natural gradients and matrix-variate posteriors.
    """

    def __init__(
        self,
        environments: Environments,
        *,
        method: str = "vogn",
        options: Mapping[str, Any] | None = None,
        prior_precision: float = 10.0,
        temperature: float = 1.0,
        seed: int = 0,
        **common: Any,
    ) -> None:
        super().__init__(environments, seed=seed, **common)
        for name, value in (("prior_precision", prior_precision), ("temperature", temperature)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be a positive finite number")
        self.prior_precision, self.temperature = prior_precision, temperature
        chosen = recipe_of(method) | dict(options or {})
        self.optimizer = METHODS[method].build(self.model, ess=1.0, weight_decay=prior_precision, seed=seed, **chosen)
        self._posterior: GaussianPosterior | None = None

    def posterior(self) -> GaussianPosterior:
        """Of the model's weights, given all transitions so far."""
        if self._posterior is None:
            self._posterior = self.optimizer.posterior()
        return self._posterior

    def raw(self, inputs: Tensor, changes: Tensor) -> Tensor:
        """The gain of each transition in nats, each as if it came next."""
        posterior = self.posterior()
        outputs, slopes = jacobian(self.model, posterior.mean(), inputs, batch_size=256)
        return information_gain(
            posterior.functional_variance(slopes), changes - outputs, float(self.likelihood.noise)
        ).detach()

    def fit(self, inputs: Tensor, changes: Tensor) -> None:
        """See :meth:`DynamicsBonus.fit`."""
        ess = self.seen / self.temperature
        for group in self.optimizer.param_groups:
            group["ess"], group["weight_decay"] = ess, self.prior_precision / ess
        self.optimizer.zero_grad()
        with self.optimizer.sampled_params():
            self.likelihood(self.model(inputs), changes).backward()
        self.optimizer.step()
        self._posterior = None

    def model_state(self) -> dict[str, Any]:
        """See :meth:`DynamicsBonus.model_state`."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_model_state(self, state: Mapping[str, Any]) -> None:
        """See :meth:`DynamicsBonus.load_model_state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._posterior = None


class PredictionError(DynamicsBonus):
    """The squared error of the dynamics model: curiosity that noise can fool.

    Args:
        environments: see :class:`DynamicsBonus`.
        lr: of Adam.
        **common: see :class:`DynamicsBonus`.

    Source: Stadie, Levine, Abbeel (2015), "Incentivizing Exploration in Reinforcement Learning with Deep Predictive
    Models".
    """

    def __init__(self, environments: Environments, *, lr: float = 3e-3, **common: Any) -> None:
        super().__init__(environments, **common)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr)

    @torch.no_grad()
    def raw(self, inputs: Tensor, changes: Tensor) -> Tensor:
        """``|change - prediction|^2``."""
        return torch.as_tensor((changes - self.model(inputs)).square().sum(-1))

    def fit(self, inputs: Tensor, changes: Tensor) -> None:
        """See :meth:`DynamicsBonus.fit`."""
        self.optimizer.zero_grad()
        self.likelihood(self.model(inputs), changes).backward()
        self.optimizer.step()

    def model_state(self) -> dict[str, Any]:
        """See :meth:`DynamicsBonus.model_state`."""
        return {"optimizer": self.optimizer.state_dict()}

    def load_model_state(self, state: Mapping[str, Any]) -> None:
        """See :meth:`DynamicsBonus.load_model_state`."""
        self.optimizer.load_state_dict(state["optimizer"])
