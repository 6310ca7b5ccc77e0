"""Agents for environments by name: tests and the command line iterate this table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vogn.rl.acktr import ACKTR, ACKTRSettings
from vogn.rl.agent import Agent
from vogn.rl.bayesian_dqn import BayesianDQN
from vogn.rl.ddpg import DDPG, DDPGSettings
from vogn.rl.dqn import DQN, DQNSettings
from vogn.rl.environments import Environments
from vogn.rl.intrinsic_rewards import InformationGain, PredictionError
from vogn.rl.noisy_dqn import NoisyDQN


@dataclass(frozen=True)
class AgentInfo:
    """An agent by name.

    Args:
        build: ``build(environments, hidden, discount, seed)``.
        summary: one line for tables.
        copies: of the environment.
        actions: ``"discrete"``, ``"real"`` or ``"any"``.
    """

    build: Callable[[Environments, tuple[int, ...], float, int], Agent]
    summary: str
    copies: int = 1
    actions: str = "discrete"


def _values(hidden: tuple[int, ...], discount: float) -> DQNSettings:
    return DQNSettings(hidden=hidden, discount=discount, update_every=4, target_every=50)


def _bayesian(method: str, **options: Any) -> AgentInfo:
    def build(environments: Environments, hidden: tuple[int, ...], discount: float, seed: int) -> Agent:
        return BayesianDQN(
            environments, _values(hidden, discount), method=method, options=options, prior_precision=10.0, seed=seed
        )

    return AgentInfo(build, f"Q-learning, a draw of the posterior of {method} for every episode")


def _acktr(shared: bool, bonus: Callable[[Environments, int], Any] | None, summary: str) -> AgentInfo:
    def build(environments: Environments, hidden: tuple[int, ...], discount: float, seed: int) -> Agent:
        settings = ACKTRSettings(hidden=hidden, discount=discount, shared=shared)
        return ACKTR(environments, settings, bonus=None if bonus is None else bonus(environments, seed), seed=seed)

    return AgentInfo(build, summary, copies=8, actions="any")


def _ddpg(exploration: Any, summary: str) -> AgentInfo:
    def build(environments: Environments, hidden: tuple[int, ...], discount: float, seed: int) -> Agent:
        return DDPG(environments, DDPGSettings(hidden=hidden, discount=discount), exploration=exploration, seed=seed)

    return AgentInfo(build, summary, actions="real")


RL_AGENTS: dict[str, AgentInfo] = {
    "dqn": AgentInfo(lambda e, h, d, s: DQN(e, _values(h, d), seed=s), "double Q-learning, epsilon-greedy"),
    "noisy-dqn": AgentInfo(lambda e, h, d, s: NoisyDQN(e, _values(h, d), seed=s), "double Q-learning, NoisyNet"),
    "vogn-dqn": _bayesian("vogn"),
    "vadam-dqn": _bayesian("vadam", initial_curvature=0.01),
    "kfac-dqn": _bayesian("kfac"),
    "acktr": _acktr(True, None, "actor-critic in a trust region, shared trunk"),
    "acktr-separate": _acktr(False, None, "actor-critic in a trust region, two networks"),
    "vime": _acktr(False, lambda e, s: InformationGain(e, method="kfac", seed=s), "information gain, Kronecker"),
    "vime-diagonal": _acktr(False, lambda e, s: InformationGain(e, seed=s), "information gain, diagonal"),
    "curiosity": _acktr(False, lambda e, s: PredictionError(e, seed=s), "prediction error as a reward"),
    "ddpg": _ddpg("action", "deterministic policy, noise on actions"),
    "ddpg-posterior": _ddpg("posterior", "deterministic policy, weights drawn from VAdam's posterior"),
}
"""Name to agent."""


def make_agent(
    name: str, environments: Environments, *, hidden: tuple[int, ...] = (64, 64), discount: float = 0.99, seed: int = 0
) -> Agent:
    """An agent with the settings of :data:`RL_AGENTS`.

    Args:
        name: in :data:`RL_AGENTS`.
        environments: for the spaces and the number of copies; ``RL_AGENTS[name].copies`` is usual.
        hidden: widths of the hidden layers.
        discount: in [0, 1].
        seed: of everything.

    Raises:
        ValueError: for an unknown name.
        SpaceMismatchError: if the agent cannot act there.
    """
    if name not in RL_AGENTS:
        raise ValueError(f"unknown agent {name!r}; known are {', '.join(RL_AGENTS)}")
    return RL_AGENTS[name].build(environments, hidden, discount, seed)
