"""A bandit from the first round to the last, resumable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vogn.errors import CheckpointError, StoppedError
from vogn.posterior.checkpoint import difference
from vogn.rl.bandit_agent import BanditAgent
from vogn.rl.bandit_problem import BanditProblem
from vogn.rl.checkpoint import read_checkpoint, write_checkpoint
from vogn.rl.description import description_of


@dataclass(frozen=True)
class BanditResult:
    """What an agent chose and what it missed.

    Args:
        problem: its name.
        arms: chosen arm of every round.
        regret: expected reward missed in every round, >= 0.
        rewards: reward of every round.
    """

    problem: str
    arms: list[int]
    regret: list[float]
    rewards: list[float]

    @property
    def cumulative_regret(self) -> list[float]:
        """Regret of the first ``t`` rounds, for every ``t``."""
        return [float(value) for value in np.cumsum(self.regret)]

    @property
    def metrics(self) -> dict[str, float]:
        """Regret of all rounds, of the last fifth, and mean reward."""
        tail = max(1, len(self.regret) // 5)
        return {
            "cumulative_regret": float(np.sum(self.regret)),
            "regret_per_round_at_end": float(np.mean(self.regret[-tail:])),
            "mean_reward": float(np.mean(self.rewards)),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"problem": self.problem, "arms": self.arms, "regret": self.regret, "rewards": self.rewards}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> BanditResult:
        """Undoes :meth:`to_dict`."""
        return cls(data["problem"], list(data["arms"]), list(data["regret"]), list(data["rewards"]))


def run_bandit(
    agent: BanditAgent,
    problem: BanditProblem,
    *,
    folder: str | Path | None = None,
    checkpoint_every: int = 500,
    should_stop: Callable[[], bool] = lambda: False,
    watcher: Callable[[int, float], None] = lambda done, regret: None,
) -> BanditResult:
    """Let an agent play all rounds.

    With a folder, ``checkpoint.pt`` there is replaced every so many rounds. A run that was killed goes on from it when
    it is called again with an agent that was built in the same way, and ends with the same choices.

    Args:
        agent: new.
        problem: with the agent's numbers of features and arms.
        folder: made if need be; ``None`` keeps nothing.
        checkpoint_every: rounds, >= 1.
        should_stop: asked after every round; where it says yes, a checkpoint is written.
        watcher: told the number of rounds and their regret so far after every round.

    Returns:
        Choices and regret.

    Raises:
        StoppedError: if ``should_stop`` said so.
        CheckpointError: if the checkpoint is damaged or of another run.
        ValueError: if agent and problem do not fit.
    """
    if (agent.features, agent.arms) != (problem.features, problem.arms):
        raise ValueError(
            f"{problem.name} has {problem.features} features and {problem.arms} arms, the agent was built for "
            f"{agent.features} and {agent.arms}"
        )
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every={checkpoint_every} must be at least 1")
    path = None if folder is None else Path(folder) / "checkpoint.pt"
    description = description_of(agent, problem=problem.name, digest=_digest(problem))
    arms: list[int] = []
    found = None if path is None else read_checkpoint(path)
    if found is not None:
        if found.get("run") != description:
            raise CheckpointError(f"{path} is of another run: {difference(found.get('run'), description)}")
        agent.load_state_dict(found["agent"])
        arms = [int(arm) for arm in found["arms"]]

    def save() -> None:
        if path is not None:
            write_checkpoint(path, {"run": description, "agent": agent.state_dict(), "arms": torch.tensor(arms)})

    missed = float(problem.regret(np.asarray(arms, dtype=np.int64)).sum())
    while len(arms) < problem.rounds:
        context, paid = problem.contexts[len(arms)], problem.rewards[len(arms)]
        arm = agent.choose(context)
        agent.observe(context, arm, float(paid[arm]))
        expected = problem.expected[len(arms)]
        missed += float(expected.max() - expected[arm])
        arms.append(arm)
        watcher(len(arms), missed)
        stop = should_stop() and len(arms) < problem.rounds
        if stop or len(arms) % checkpoint_every == 0 or len(arms) == problem.rounds:
            save()
        if stop:
            raise StoppedError(f"stopped after round {len(arms)} of {problem.rounds}")
    chosen = np.asarray(arms, dtype=np.int64)
    rewards = problem.rewards[np.arange(len(chosen)), chosen]
    return BanditResult(problem.name, arms, problem.regret(chosen).tolist(), rewards.tolist())


def _digest(problem: BanditProblem) -> str:
    """Tells tables apart."""
    digest = hashlib.sha256()
    for table in (problem.contexts, problem.expected, problem.rewards):
        digest.update(np.ascontiguousarray(table).tobytes())
    return digest.hexdigest()[:16]
