"""ACKTR: an actor-critic whose natural-gradient steps stay within a bound on the KL divergence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vogn.likelihoods import Gaussian
from vogn.models import mlp
from vogn.optim.kfac import KFAC
from vogn.rl.actor_critic_likelihood import ActorCritic
from vogn.rl.actor_critic_network import ActorCriticNetwork
from vogn.rl.advantages import advantages
from vogn.rl.agent import Agent
from vogn.rl.environments import Environments, Transitions
from vogn.rl.randomness import derived_seed

SLACK = 1.5
"""A step whose measured divergence is more than so many times the bound is shortened."""
SHORTENINGS = 10
"""At most; the divergence falls with the square of the length."""


@dataclass(frozen=True)
class ACKTRSettings:
    """Numbers of :class:`ACKTR`.

    Args:
        hidden: widths of the hidden layers, tanh.
        shared: one trunk for policy and value, one optimizer, one Fisher matrix of both; else a network and an
            optimizer for each.
        rollout: steps of every copy between updates, >= 1.
        discount, gae: discount and decay of the advantage estimates, in [0, 1].
        delta: bound on the KL divergence of a step, nats, > 0.
        lr: largest step, > 0; 1 is the whole natural gradient.
        anneal: steps of all copies over which ``lr`` falls to zero in a line; 0 keeps it.
        critic_delta: bound of the critic's own optimizer where nothing is shared, > 0.
        critic_steps: steps of that optimizer on every rollout, >= 1.
        value_weight: of the critic's loss where the trunk is shared, >= 0.
        entropy_weight: >= 0.
        damping: added to the Fisher matrix, >= 0.
        fisher_decay: of its running average, in [0, 1).
        normalise: advantages to mean 0 and standard deviation 1 in each rollout.

    Raises:
        ValueError: if a number is out of range.
    """

    hidden: tuple[int, ...] = (64, 64)
    shared: bool = True
    rollout: int = 20
    discount: float = 0.99
    gae: float = 0.95
    delta: float = 1e-2
    lr: float = 0.25
    anneal: int = 0
    critic_delta: float = 0.1
    critic_steps: int = 5
    value_weight: float = 0.5
    entropy_weight: float = 0.01
    damping: float = 1e-2
    fisher_decay: float = 0.9
    normalise: bool = True

    def __post_init__(self) -> None:
        for name in ("discount", "gae"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1]")
        for name in ("delta", "lr", "critic_delta"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be a positive finite number")
        for name, least in (("rollout", 1), ("critic_steps", 1), ("anneal", 0), ("value_weight", 0),
                            ("entropy_weight", 0), ("damping", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")


class Bonus(Protocol):
    """An intrinsic reward; see :class:`vogn.rl.InformationGain`."""

    def rewards(self, observations: Tensor, actions: Tensor, following: Tensor) -> Tensor:
        """Of transitions ``(N, d)``, ``(N, a)``, ``(N, d)``: ``(N,)``."""
        ...

    def learn(self, observations: Tensor, actions: Tensor, following: Tensor) -> None:
        """From the same transitions, afterwards."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Undoes :meth:`state_dict`."""
        ...


class ACKTR(Agent):
    """Policy gradients, preconditioned by Kronecker factors of the joint Fisher matrix, within a trust region.

    A step is ``lr nu P``, ``P`` the natural gradient, ``nu = min(1, sqrt(2 delta / (lr^2 P^T (F + damping) P)))``: to
    second order the divergence of the step is at most ``delta``. The divergence of the policies before and after is
    measured, and a step beyond ``1.5 delta`` is shortened. The critic predicts returns in units of their
    running root mean square, with unit variance, so that its Fisher matrix is its Gauss-Newton matrix and weighs about
    as much as the policy's.

    Args:
        environments: discrete or bounded real actions.
        settings: see :class:`ACKTRSettings`.
        bonus: intrinsic rewards, added to those of the environment.
        seed: of everything.

    Source: Wu, Mansimov, Grosse, Liao, Ba (2017); step size: equation 5 and section 3.2.
    """

    def __init__(
        self,
        environments: Environments,
        settings: ACKTRSettings | None = None,
        *,
        bonus: Bonus | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(environments)
        chosen = self.settings = settings or ACKTRSettings()
        self.bonus, self.seed = bonus, seed
        size = 1 if self.low is None else len(self.low)
        self.likelihood = ActorCritic(self.actions, size, critic=chosen.shared)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network = ActorCriticNetwork(self.features, chosen.hidden, self.likelihood)
            self.critic = None if chosen.shared else mlp((self.features, *chosen.hidden, 1), "tanh")
        self.optimizer = self._kfac(self.network, chosen.delta)
        self.critic_optimizer = None if self.critic is None else self._kfac(self.critic, chosen.critic_delta)
        self.return_scale = 1.0
        self.seen = 0
        self.last_kl = float("nan")
        """Mean KL divergence of the policy that the last update made, nats."""
        self._raw = torch.zeros(self.count, size)
        self._rollout: list[tuple[Tensor, ...]] = []

    def _kfac(self, network: nn.Module, delta: float) -> KFAC:
        chosen = self.settings
        return KFAC(
            network,
            lr=chosen.lr,
            weight_decay=0.0,
            damping=chosen.damping,
            momentum=0.0,
            curvature_decay=chosen.fisher_decay,
            fisher="ggn",
            kl_clip=2 * delta,
            refresh_every=1,
            variational=False,
            seed=self.seed,
        )

    @torch.no_grad()
    def act(self, observations: Tensor) -> Tensor:
        """A draw of the policy; the draw is a function of the seed and the number of steps."""
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.seen))
        policy, _ = self.likelihood.split(self.network(observations))
        self._raw = self.likelihood.sample_action(policy, generator)
        return self._to_environment(self._raw)

    @torch.no_grad()
    def best(self, observations: Tensor) -> Tensor:
        """The most probable action."""
        policy, _ = self.likelihood.split(self.network(observations))
        if self.actions is not None:
            return policy.argmax(-1)
        return self._to_environment(policy.chunk(2, -1)[0])

    def _to_environment(self, raw: Tensor) -> Tensor:
        """Indices; or real actions, whose bounds are -1 and 1 for the policy."""
        if self.low is None or self.high is None:
            return raw[:, 0].long()
        clipped = raw.clamp(-1, 1)
        return 0.5 * (self.high + self.low) + 0.5 * (self.high - self.low) * clipped

    def observe(self, step: Transitions) -> None:
        """Collect; update when the rollout is full."""
        self._rollout.append(
            (step.observations, self._raw, step.rewards, step.following, step.terminated, step.ended)
        )
        self.seen += self.count
        if len(self._rollout) == self.settings.rollout:
            self._update()
            self._rollout = []

    @torch.no_grad()
    def values(self, observations: Tensor) -> Tensor:
        """Of states ``(N, d)``, in the unit of rewards, ``(N,)``."""
        if self.critic is not None:
            return torch.as_tensor(self.critic(observations)).squeeze(1) * self.return_scale
        return self.likelihood.split(self.network(observations))[1] * self.return_scale

    def _update(self) -> None:
        chosen = self.settings
        x, raw, rewards, following, terminated, ended = (torch.stack(rows) for rows in zip(*self._rollout, strict=True))
        flat = (x.flatten(0, 1), raw.flatten(0, 1), following.flatten(0, 1))
        if self.bonus is not None:
            rewards = rewards + self.bonus.rewards(*flat).view_as(rewards)
        now, later = self.values(flat[0]).view_as(rewards), self.values(flat[2]).view_as(rewards)
        found = advantages(rewards, now, later, terminated, ended, chosen.discount, chosen.gae)
        returns, found = (found + now).flatten(), found.flatten()
        share = 1.0 if self.seen > self.count * chosen.rollout else 0.0
        square = share * 0.99 * self.return_scale**2 + (1 - share * 0.99) * float(returns.square().mean())
        self.return_scale = max(square**0.5, 1e-3)
        if chosen.normalise:
            found = (found - found.mean()) / (found.std() + 1e-8)
        if chosen.anneal:
            for optimizer in filter(None, (self.optimizer, self.critic_optimizer)):
                optimizer.param_groups[0]["lr"] = chosen.lr * max(0.0, 1 - self.seen / chosen.anneal)
        self._improve(flat[0], flat[1], found, returns / self.return_scale)
        if self.bonus is not None:
            self.bonus.learn(*flat)

    def _improve(self, x: Tensor, raw: Tensor, advantage: Tensor, targets: Tensor) -> None:
        """One step of the policy (and of the value, if it shares the trunk); several of a critic of its own."""
        chosen = self.settings
        self.optimizer.zero_grad()
        with self.optimizer.sampled_params():
            outputs = self.network(x)
            self.optimizer.observe(outputs, self.likelihood)
            policy, value = self.likelihood.split(outputs)
            loss = -(advantage * self.likelihood.log_prob(policy, raw)).mean()
            loss = loss - chosen.entropy_weight * self.likelihood.entropy(policy).mean()
            if chosen.shared:
                loss = loss + chosen.value_weight * 0.5 * (value - targets).square().mean()
            loss.backward()
        self._step_within_bound(x, policy.detach())
        if self.critic is None or self.critic_optimizer is None:
            return
        unit = Gaussian(1.0)
        for _ in range(chosen.critic_steps):
            self.critic_optimizer.zero_grad()
            with self.critic_optimizer.sampled_params():
                unit(self.critic(x), targets.unsqueeze(1)).backward()
            self.critic_optimizer.step()

    @torch.no_grad()
    def _step_within_bound(self, x: Tensor, before: Tensor) -> None:
        """Blocks of the Fisher matrix leave out how layers act together: a step that went too far is shortened."""
        parameters = list(self.network.parameters())
        old = [p.clone() for p in parameters]
        self.optimizer.step()
        full = [p - q for p, q in zip(parameters, old, strict=True)]
        share = 1.0
        for _ in range(SHORTENINGS):
            self.last_kl = float(self.likelihood.kl(before, self.likelihood.split(self.network(x))[0]).mean())
            if self.last_kl <= SLACK * self.settings.delta:
                return
            share *= min(0.9, (self.settings.delta / self.last_kl) ** 0.5)
            for p, q, step in zip(parameters, old, full, strict=True):
                p.copy_(q + share * step)

    def state_dict(self) -> dict[str, Any]:
        """See :meth:`Agent.state_dict`."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "critic": None if self.critic is None else self.critic.state_dict(),
            "critic optimizer": None if self.critic_optimizer is None else self.critic_optimizer.state_dict(),
            "return scale": self.return_scale,
            "seen": self.seen,
            "raw": self._raw.clone(),
            "rollout": [list(rows) for rows in self._rollout],
            "bonus": None if self.bonus is None else self.bonus.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """See :meth:`Agent.load_state_dict`."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.critic is not None and self.critic_optimizer is not None:
            self.critic.load_state_dict(state["critic"])
            self.critic_optimizer.load_state_dict(state["critic optimizer"])
        self.return_scale, self.seen = float(state["return scale"]), int(state["seen"])
        self._raw, self._rollout = state["raw"].clone(), [tuple(rows) for rows in state["rollout"]]
        if self.bonus is not None:
            self.bonus.load_state_dict(state["bonus"])
