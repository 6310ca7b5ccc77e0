"""DDPG whose actor's weights are drawn from a posterior: noise in parameter space instead of on actions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from vogn.models import mlp
from vogn.optim.vadam import VAdam
from vogn.rl.agent import Agent
from vogn.rl.environments import Environments, SpaceMismatchError, Transitions
from vogn.rl.randomness import generator_from_state, generator_state
from vogn.rl.replay import ReplayBuffer


@dataclass(frozen=True)
class DDPGSettings:
    """Numbers of :class:`DDPG`.

    Args:
        hidden: widths of the hidden layers of actor and critic.
        discount: in [0, 1].
        actor_lr, critic_lr: > 0.
        polyak: share of the new weights in the target networks at every update, in (0, 1].
        batch_size, capacity, warmup, update_every: as in :class:`vogn.rl.DQNSettings`.
        action_noise: standard deviation of the noise on actions, in half widths of their bounds, >= 0; for
            ``exploration="action"``.
        precision: of the posterior of the actor's weights at least, > 0: the standard deviation of a weight is at most
            ``precision^(-1/2)``; for ``exploration="posterior"``.
        ess: effective sample size of that posterior, > 0. Larger ones leave less noise where the critic is steep, and
            weaken the prior, whose weight in a step is ``precision / ess``.

    Raises:
        ValueError: if a number is out of range.
    """

    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.98
    actor_lr: float = 1e-3
    critic_lr: float = 1e-3
    polyak: float = 0.01
    batch_size: int = 64
    capacity: int = 50_000
    warmup: int = 500
    update_every: int = 1
    action_noise: float = 0.1
    precision: float = 1e2
    ess: float = 1e5

    def __post_init__(self) -> None:
        for name, low, high in (("discount", 0.0, 1.0), ("polyak", 1e-12, 1.0), ("action_noise", 0.0, float("inf"))):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} must be in [{low:g}, {high:g}]")
        for name in ("actor_lr", "critic_lr", "precision", "ess"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be a positive finite number")
        for name in ("batch_size", "capacity", "warmup", "update_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")


class DDPG(Agent):
    """A deterministic actor that climbs its critic.

    With ``exploration="posterior"`` the actor is trained by VAdam: its gradient is taken at a draw of the weights, and
    every copy of the environment acts by a draw of its own for a whole episode. The posterior is
    ``N(m, (ess s + precision)^-1)``, where ``s`` is VAdam's second moment.
    With ``"action"`` Adam trains the actor and independent normal noise is added to the actions. Target networks and
    :meth:`best` use the mean.

    Args:
        environments: bounded real actions.
        settings: see :class:`DDPGSettings`.
        exploration: ``"posterior"``, ``"action"`` or ``"none"``.
        seed: of everything.

    Raises:
        SpaceMismatchError: for discrete actions.

    Source: Lillicrap et al. (2016), "Continuous control with deep reinforcement learning"; Khan et al. (2018), section
    5.3; Plappert et al. (2018), "Parameter Space Noise for Exploration".
    """

    def __init__(
        self,
        environments: Environments,
        settings: DDPGSettings | None = None,
        *,
        exploration: Literal["posterior", "action", "none"] = "posterior",
        seed: int = 0,
    ) -> None:
        super().__init__(environments)
        if self.low is None or self.high is None:
            raise SpaceMismatchError("DDPG needs real actions; DQN and BayesianDQN take discrete ones")
        if exploration not in ("posterior", "action", "none"):
            raise ValueError(f"exploration={exploration!r}: choose 'posterior', 'action' or 'none'")
        chosen = self.settings = settings or DDPGSettings()
        self.exploration, self.seed = exploration, seed
        self.size = len(self.low)
        self.generator = np.random.default_rng(seed)
        self.buffer = ReplayBuffer(chosen.capacity)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network: nn.Module = nn.Sequential(mlp((self.features, *chosen.hidden, self.size)), nn.Tanh())
            self.critic: nn.Module = mlp((self.features + self.size, *chosen.hidden, 1))
            self.target = nn.ModuleList(
                [nn.Sequential(mlp((self.features, *chosen.hidden, self.size)), nn.Tanh()),
                 mlp((self.features + self.size, *chosen.hidden, 1))]
            )  # fmt: skip
        self.target.load_state_dict(nn.ModuleList([self.network, self.critic]).state_dict())
        self.actor_optimizer: torch.optim.Optimizer = (
            VAdam(
                self.network,
                lr=chosen.actor_lr,
                ess=chosen.ess,
                weight_decay=chosen.precision / chosen.ess,
                seed=seed,
            )
            if exploration == "posterior"
            else torch.optim.Adam(self.network.parameters(), chosen.actor_lr)
        )
        self.critic_optimizer = torch.optim.Adam(self.critic.parameters(), chosen.critic_lr)
        self.updates = self.draws = 0
        self._acting: list[dict[str, Tensor]] = [{} for _ in range(self.count)]

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """Uniform in the warm-up."""
        if not self.updates:
            uniform = self.generator.uniform(-1, 1, (len(observations), self.size))
            return self._to_environment(torch.from_numpy(uniform).float())
        if self.exploration == "posterior":
            rows = [functional_call(self.network, self._weights(i), (x[None],)) for i, x in enumerate(observations)]
            return self._to_environment(torch.cat(rows))
        raw = self.network(observations)
        if self.exploration == "action":
            noise = torch.from_numpy(self.generator.standard_normal(tuple(raw.shape))).float()
            raw = (raw + self.settings.action_noise * noise).clamp(-1, 1)
        return self._to_environment(raw)

    @torch.no_grad()
    def best(self, observations: Tensor) -> Tensor:
        """Of the mean weights, without noise."""
        return self._to_environment(self.network(observations))

    def observe(self, step: Transitions) -> None:
        """Keep the transitions; update when it is time."""
        before = self.buffer.seen
        self.buffer.add(step)
        for copy in torch.nonzero(step.ended).flatten().tolist():
            self._acting[copy] = {}
        if self.buffer.seen >= self.settings.warmup:
            every = self.settings.update_every
            for _ in range(self.buffer.seen // every - max(before, self.settings.warmup - 1) // every):
                self._learn()

    def _weights(self, copy: int) -> dict[str, Tensor]:
        """Drawn once for every episode of a copy."""
        if not self._acting[copy]:
            assert isinstance(self.actor_optimizer, VAdam)
            draw = self.actor_optimizer.posterior().sample(1, seed=self.seed, start=self.draws)
            self.draws += 1
            self._acting[copy] = {name: tensor[0] for name, tensor in draw.items()}
        return self._acting[copy]

    def _learn(self) -> None:
        chosen = self.settings
        batch = self.buffer.batch(chosen.batch_size, self.generator)
        x, following = batch["observations"], batch["following"]
        with torch.no_grad():
            later = self.target[1](torch.cat([following, self.target[0](following)], 1)).squeeze(1)
            wanted = batch["rewards"] + chosen.discount * later * ~batch["terminated"]
        self.critic_optimizer.zero_grad()
        actions = self._from_environment(batch["actions"])
        nn.functional.mse_loss(self.critic(torch.cat([x, actions], 1)).squeeze(1), wanted).backward()
        self.critic_optimizer.step()
        self.actor_optimizer.zero_grad()
        if isinstance(self.actor_optimizer, VAdam):
            with self.actor_optimizer.sampled_params():
                self._climb(x)
        else:
            self._climb(x)
        self.actor_optimizer.step()
        with torch.no_grad():
            now = [*self.network.parameters(), *self.critic.parameters()]
            for old, new in zip(self.target.parameters(), now, strict=True):
                old.lerp_(new, chosen.polyak)
        self.updates += 1

    def _climb(self, x: Tensor) -> None:
        """Gradients of the actor; those that the critic gets are cleared before its next step."""
        (-self.critic(torch.cat([x, self.network(x)], 1)).mean()).backward()

    def _to_environment(self, raw: Tensor) -> Tensor:
        assert self.low is not None and self.high is not None
        return 0.5 * (self.high + self.low) + 0.5 * (self.high - self.low) * raw

    def _from_environment(self, actions: Tensor) -> Tensor:
        assert self.low is not None and self.high is not None
        return (2 * actions - self.high - self.low) / (self.high - self.low)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Agent.state_dict`."""
        return {
            "actor": self.network.state_dict(),
            "critic": self.critic.state_dict(),
            "target": self.target.state_dict(),
            "actor optimizer": self.actor_optimizer.state_dict(),
            "critic optimizer": self.critic_optimizer.state_dict(),
            "buffer": self.buffer.state_dict(),
            "generator": generator_state(self.generator),
            "counters": [self.updates, self.draws],
            "acting": [dict(weights) for weights in self._acting],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Agent.load_state_dict`."""
        self.network.load_state_dict(state["actor"])
        self.critic.load_state_dict(state["critic"])
        self.target.load_state_dict(state["target"])
        self.actor_optimizer.load_state_dict(state["actor optimizer"])
        self.critic_optimizer.load_state_dict(state["critic optimizer"])
        self.buffer.load_state_dict(state["buffer"])
        self.generator = generator_from_state(state["generator"])
        self.updates, self.draws = (int(number) for number in state["counters"])
        self._acting = [dict(weights) for weights in state["acting"]]
