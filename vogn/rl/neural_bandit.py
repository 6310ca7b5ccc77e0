"""What agents of bandits that learn a network have in common: history, batches, first pulls."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vogn.likelihoods import Gaussian
from vogn.rl.bandit_agent import BanditAgent
from vogn.rl.randomness import generator_from_state, generator_state


class NeuralBandit(BanditAgent):
    """A network predicts the rewards of all arms from the context; only the chosen arm's output has a target.

    Every ``update_every`` rounds it takes ``steps`` steps on batches of all that was seen; nothing is forgotten. The
    first ``initial_pulls`` rounds of every arm go round-robin.

    Args:
        network: contexts ``(N, d)`` to ``(N, K)``, float32.
        features: ``d``.
        arms: ``K``.
        noise: standard deviation of scaled rewards given the context, > 0.
        reward_scale: rewards are divided by it, > 0.
        initial_pulls: of every arm, >= 1.
        update_every: rounds, >= 1.
        steps: optimizer steps of an update, >= 1.
        batch_size: >= 1.
        seed: of everything random.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        features: int,
        arms: int,
        *,
        noise: float = 0.3,
        reward_scale: float = 1.0,
        initial_pulls: int = 3,
        update_every: int = 10,
        steps: int = 5,
        batch_size: int = 64,
        seed: int = 0,
    ) -> None:
        super().__init__(features, arms)
        for name, value in (("noise", noise), ("reward_scale", reward_scale)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be a positive finite number")
        for name, count in (("initial_pulls", initial_pulls), ("update_every", update_every), ("steps", steps),
                            ("batch_size", batch_size)):  # fmt: skip
            if count < 1:
                raise ValueError(f"{name}={count} must be at least 1")
        self.network, self.likelihood, self.reward_scale = network, Gaussian(noise), reward_scale
        self.initial_pulls, self.update_every, self.steps = initial_pulls, update_every, steps
        self.batch_size, self.seed = batch_size, seed
        self.generator = np.random.default_rng(seed)
        self.rounds = 0
        """Rewards seen."""
        self._contexts = torch.zeros(0, features)
        self._arms = torch.zeros(0, dtype=torch.int64)
        self._rewards = torch.zeros(0)

    @abstractmethod
    def fit(self) -> None:
        """Take :attr:`steps` steps on the history."""

    @abstractmethod
    def decide(self, x: Tensor) -> int:
        """The arm for a context ``(1, d)``, after the first pulls."""

    @abstractmethod
    def learnt_state(self) -> dict[str, Any]:
        """Networks and optimizers."""

    @abstractmethod
    def load_learnt_state(self, state: Mapping[str, Any]) -> None:
        """Undoes :meth:`learnt_state`."""

    def history(self) -> tuple[Tensor, Tensor, Tensor]:
        """Contexts ``(n, d)``, arms ``(n,)`` and scaled rewards ``(n,)``."""
        return self._contexts[: self.rounds], self._arms[: self.rounds], self._rewards[: self.rounds]

    def batch(self) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs ``(B, d)``, arms ``(B, 1)`` and targets ``(B, 1)``, drawn from the history with replacement."""
        chosen = torch.from_numpy(self.generator.integers(self.rounds, size=min(self.batch_size, self.rounds)))
        x, arms, rewards = self.history()
        return x[chosen], arms[chosen].unsqueeze(1), rewards[chosen].unsqueeze(1)

    def loss(self, outputs: Tensor, arms: Tensor, rewards: Tensor) -> Tensor:
        """Negative log-likelihood of the chosen arms' rewards, nats a round."""
        return self.likelihood(outputs.gather(1, arms), rewards)

    def choose(self, context: NDArray[np.float64]) -> int:
        """Round-robin at first, then :meth:`decide`."""
        found = self.checked(context)
        if self.rounds < self.initial_pulls * self.arms:
            return self.rounds % self.arms
        return self.decide(torch.from_numpy(found).float().unsqueeze(0))

    def observe(self, context: NDArray[np.float64], arm: int, reward: float) -> None:
        """Append to the history, and learn from all of it if a learning round is due."""
        found = self.checked(context, arm, reward)
        if self.rounds == len(self._arms):
            self._grow(max(256, 2 * self.rounds))
        self._contexts[self.rounds] = torch.from_numpy(found).float()
        self._arms[self.rounds] = arm
        self._rewards[self.rounds] = reward / self.reward_scale
        self.rounds += 1
        first = self.initial_pulls * self.arms
        if self.rounds >= first and (self.rounds - first) % self.update_every == 0:
            self.fit()

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`BanditAgent.state_dict`."""
        names = ("contexts", "arms", "rewards")
        history = {name: tensor.clone() for name, tensor in zip(names, self.history(), strict=True)}
        return {"history": history, "generator": generator_state(self.generator), "learnt": self.learnt_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`BanditAgent.load_state_dict`."""
        history = state["history"]
        self._contexts, self._arms, self._rewards = (history[n].clone() for n in ("contexts", "arms", "rewards"))
        self.rounds = len(self._arms)
        self.generator = generator_from_state(state["generator"])
        self.load_learnt_state(state["learnt"])

    def _grow(self, size: int) -> None:
        more = size - len(self._arms)
        self._contexts = torch.cat([self._contexts, torch.zeros(more, self.features)])
        self._arms = torch.cat([self._arms, torch.zeros(more, dtype=torch.int64)])
        self._rewards = torch.cat([self._rewards, torch.zeros(more)])
