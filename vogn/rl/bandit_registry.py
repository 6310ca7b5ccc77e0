"""Bandits and their agents by name: tests, studies and the command line iterate these tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from vogn.models import mlp
from vogn.rl.bandit_agent import BanditAgent, UniformBandit
from vogn.rl.bandit_baselines import EnsembleThompson, EpsilonGreedy, LastLayerThompson
from vogn.rl.bandit_problem import BanditProblem, breast_cancer_bandit, digits_bandit, wheel_bandit
from vogn.rl.linear_thompson import LinearThompson
from vogn.rl.neural_thompson import NeuralThompson


@dataclass(frozen=True)
class BanditInfo:
    """A bandit by name.

    Args:
        make: ``make(rounds, seed=...)``.
        rounds: of a usual run.
        options: of neural agents: the scale of its rewards and their noise.
    """

    make: Callable[..., BanditProblem]
    rounds: int
    options: dict[str, Any] = field(default_factory=dict)


def _wheel(delta: float) -> Callable[..., BanditProblem]:
    return lambda rounds, *, seed=0: wheel_bandit(rounds, delta, seed=seed)


_WHEEL = {"reward_scale": 10.0, "noise": 0.3}
BANDITS: dict[str, BanditInfo] = {
    "wheel": BanditInfo(_wheel(0.5), 2000, _WHEEL),
    "wheel-0.9": BanditInfo(_wheel(0.9), 2000, _WHEEL),
    "digits": BanditInfo(digits_bandit, 1500),
    "breast-cancer": BanditInfo(breast_cancer_bandit, 1000),
}
"""Name to bandit."""

NEURAL = ("greedy", "epsilon-greedy", "ensemble", "last-layer")
BANDIT_AGENTS: tuple[str, ...] = ("uniform", "linear", *NEURAL, "vogn", "vadam", "kfac", "ekfac", "slang")
"""Agents by name; the last ones are Thompson sampling by a method of :data:`vogn.METHODS`, any of which will do."""


def make_bandit_agent(
    name: str,
    problem: BanditProblem,
    *,
    hidden: tuple[int, ...] = (50, 50),
    members: int = 5,
    seed: int = 0,
    **options: Any,
) -> BanditAgent:
    """An agent for a bandit.

    Args:
        name: in :data:`BANDIT_AGENTS`, or a method in :data:`vogn.METHODS`.
        problem: for the numbers of features and arms.
        hidden: widths of the network's hidden layers.
        members: of the ensemble.
        seed: of weights and decisions.
        **options: of the agent's class.

    Raises:
        ValueError: for an unknown name.
    """
    shape = (problem.features, problem.arms)
    if name == "uniform":
        return UniformBandit(*shape, seed=seed)
    if name == "linear":
        allowed = {key: value for key, value in options.items() if key in ("noise", "prior_precision")}
        scale = options.get("reward_scale", 1.0)
        return LinearThompson(*shape, seed=seed, **allowed | {"noise": scale * options.get("noise", 0.3)})

    def network(number: int = 0) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 1000 * number)
            return mlp((problem.features, *hidden, problem.arms))

    if name == "ensemble":
        return EnsembleThompson([network(k) for k in range(members)], *shape, seed=seed, **options)
    if name in ("greedy", "epsilon-greedy"):
        chance = {"epsilon": 0.0} if name == "greedy" else {}
        return EpsilonGreedy(network(), *shape, seed=seed, **chance | options)
    if name == "last-layer":
        return LastLayerThompson(network(), *shape, seed=seed, **options)
    try:
        return NeuralThompson(network(), *shape, method=name, seed=seed, **options)
    except ValueError as error:
        if "is unknown" in str(error):
            raise ValueError(f"unknown agent {name!r}; known are {', '.join(BANDIT_AGENTS)}") from error
        raise
