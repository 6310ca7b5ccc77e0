"""Deep Q-learning: what all ways to explore share, and epsilon-greedy, the plainest of them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vogn.likelihoods import Gaussian
from vogn.models import mlp
from vogn.rl.agent import Agent
from vogn.rl.environments import Environments, SpaceMismatchError, Transitions
from vogn.rl.randomness import generator_from_state, generator_state
from vogn.rl.replay import ReplayBuffer


@dataclass(frozen=True)
class DQNSettings:
    """What all value learners share.

    Args:
        hidden: widths of the hidden layers; none for values that are linear in the observation.
        discount: in [0, 1].
        noise: standard deviation of TD targets given the value, > 0, in the unit of returns.
        batch_size: transitions of an update, >= 1.
        capacity: of the replay buffer, >= 1.
        warmup: steps of all copies, >= 1, with random actions before the first update.
        update_every: steps between updates, >= 1.
        target_every: updates between copies of the network to the target network, >= 1.
        double: the online network chooses the action that the target network values.

    Raises:
        ValueError: if a number is out of range.

    Source: Mnih et al. (2015), "Human-level control through deep reinforcement learning"; van Hasselt, Guez, Silver
    (2016), "Deep Reinforcement Learning with Double Q-learning".
    """

    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.99
    noise: float = 1.0
    batch_size: int = 64
    capacity: int = 50_000
    warmup: int = 500
    update_every: int = 1
    target_every: int = 100
    double: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount={self.discount} must be in [0, 1]")
        if not 0 < self.noise < float("inf"):
            raise ValueError(f"noise={self.noise} must be a positive finite number")
        for name in ("batch_size", "capacity", "warmup", "update_every", "target_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.hidden and min(self.hidden) < 1:
            raise ValueError(f"hidden={self.hidden} needs widths of at least 1")


class ValueLearner(Agent):
    """Q-learning from a replay buffer. Subclasses explore, optimise, and say what stands in the target.

    The loss of a batch is the negative log-likelihood of ``r + discount max_a Q_target(s', a)`` under
    ``N(Q(s, a), noise^2)``; an episode that was truncated, not terminated, is worth ``Q_target`` of where it was cut.

    Args:
        environments: discrete actions.
        settings: see :class:`DQNSettings`.
        seed: of weights, batches and random actions.

    Raises:
        SpaceMismatchError: for real actions.
    """

    def __init__(self, environments: Environments, settings: DQNSettings | None = None, *, seed: int = 0) -> None:
        super().__init__(environments)
        if self.actions is None:
            raise SpaceMismatchError("Q-learning needs discrete actions; DDPG takes real ones")
        self.choices: int = self.actions
        self.settings, self.seed = settings or DQNSettings(), seed
        self.likelihood = Gaussian(self.settings.noise)
        self.generator = np.random.default_rng(seed)
        self.buffer = ReplayBuffer(self.settings.capacity)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = self.build_network()
        self.updates = 0

    def build_network(self) -> nn.Module:
        """Observations ``(N, d)`` to values ``(N, actions)``."""
        return mlp((self.features, *self.settings.hidden, self.choices))

    @abstractmethod
    def explore(self, observations: Tensor) -> Tensor:
        """Actions after the warm-up, ``(count,)``."""

    @abstractmethod
    def target_values(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """Values ``(N, actions)`` that choose the next action, and values that stand in the target."""

    @abstractmethod
    def update(self, observations: Tensor, actions: Tensor, targets: Tensor) -> None:
        """One step of the optimizer; actions and targets ``(N, 1)``."""

    @abstractmethod
    def copy_target(self) -> None:
        """The target becomes what has been learnt so far."""

    @property
    def warm(self) -> bool:
        """Whether the warm-up is over."""
        return self.updates > 0

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Random in the warm-up, then :meth:`explore`."""
        if not self.warm:
            return torch.from_numpy(self.generator.integers(self.choices, size=len(observations)))
        return self.explore(observations)

    @torch.no_grad()
    def best(self, observations: Tensor) -> Tensor:
        """The action of the largest value."""
        return torch.as_tensor(self.network(observations)).argmax(-1)

    def observe(self, step: Transitions) -> None:
        """Keep the transitions; update when it is time."""
        before = self.buffer.seen
        self.buffer.add(step)
        every = self.settings.update_every
        if self.buffer.seen >= self.settings.warmup:
            due = self.buffer.seen // every - max(before, self.settings.warmup - 1) // every
            for _ in range(due):
                self._learn()

    def td_targets(self, batch: Mapping[str, Tensor]) -> Tensor:
        """``r + discount (1 - terminated) Q_target(s', a*)``, ``(N,)``."""
        with torch.no_grad():
            choosing, valued = self.target_values(batch["following"])
            value = valued.gather(1, choosing.argmax(1, keepdim=True)).squeeze(1)
            return batch["rewards"] + self.settings.discount * (~batch["terminated"]) * value

    def _learn(self) -> None:
        if self.updates % self.settings.target_every == 0:
            self.copy_target()
        batch = self.buffer.batch(self.settings.batch_size, self.generator)
        self.update(batch["observations"], batch["actions"].unsqueeze(1), self.td_targets(batch).unsqueeze(1))
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Agent.state_dict`."""
        return {
            "network": self.network.state_dict(),
            "buffer": self.buffer.state_dict(),
            "generator": generator_state(self.generator),
            "updates": self.updates,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Agent.load_state_dict`."""
        self.network.load_state_dict(state["network"])
        self.buffer.load_state_dict(state["buffer"])
        self.generator = generator_from_state(state["generator"])
        self.updates = int(state["updates"])


class DQN(ValueLearner):
    """Adam and epsilon-greedy actions.

    Args:
        environments: see :class:`ValueLearner`.
        settings: see :class:`DQNSettings`.
        lr: of Adam.
        epsilon: chance of a random action after the warm-up, first and last, in [0, 1].
        epsilon_steps: steps over which it falls, in a line.
        seed: of everything.

    Raises:
        ValueError: if a number is out of range.
    """

    def __init__(
        self,
        environments: Environments,
        settings: DQNSettings | None = None,
        *,
        lr: float = 1e-3,
        epsilon: tuple[float, float] = (1.0, 0.05),
        epsilon_steps: int = 5000,
        seed: int = 0,
    ) -> None:
        super().__init__(environments, settings, seed=seed)
        if not 0 <= min(epsilon) <= max(epsilon) <= 1 or epsilon_steps < 1:
            raise ValueError(f"epsilon={epsilon} must lie in [0, 1] and epsilon_steps={epsilon_steps} be at least 1")
        self.epsilon, self.epsilon_steps = epsilon, epsilon_steps
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr)
        with torch.random.fork_rng(devices=[]):
            self.target = self.build_network()

    def chance(self) -> float:
        """Epsilon of now."""
        share = min(1.0, self.buffer.seen / self.epsilon_steps)
        return self.epsilon[0] + share * (self.epsilon[1] - self.epsilon[0])

    def explore(self, observations: Tensor) -> Tensor:
        """See :meth:`ValueLearner.explore`."""
        random = torch.from_numpy(self.generator.integers(self.choices, size=len(observations)))
        chosen = torch.from_numpy(self.generator.uniform(size=len(observations)) < self.chance())
        return torch.where(chosen, random, self.best(observations))

    def target_values(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        """See :meth:`ValueLearner.target_values`."""
        valued = self.target(observations)
        return (self.network(observations) if self.settings.double else valued), valued

    def update(self, observations: Tensor, actions: Tensor, targets: Tensor) -> None:
        """See :meth:`ValueLearner.update`."""
        self.optimizer.zero_grad()
        self.likelihood(self.network(observations).gather(1, actions), targets).backward()
        self.optimizer.step()

    def copy_target(self) -> None:
        """See :meth:`ValueLearner.copy_target`."""
        self.target.load_state_dict(self.network.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Agent.state_dict`."""
        return super().state_dict() | {"target": self.target.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Agent.load_state_dict`."""
        super().load_state_dict(state)
        self.target.load_state_dict(state["target"])
        self.optimizer.load_state_dict(state["optimizer"])
