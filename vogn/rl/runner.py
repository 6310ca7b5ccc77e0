"""An agent in its environment for a number of steps: episodes, evaluations, checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vogn.errors import CheckpointError, StoppedError
from vogn.posterior.checkpoint import difference
from vogn.rl.agent import Agent
from vogn.rl.checkpoint import read_checkpoint, write_checkpoint
from vogn.rl.coverage import StateCoverage
from vogn.rl.description import description_of
from vogn.rl.environments import EnvironmentFailure, Environments, MakeEnvironment

EVALUATION_SEED = 1 << 20
"""Added to the seed of a run for its evaluation episodes."""


@dataclass
class RunResult:
    """What happened in a run. Steps are counted over all copies of the environment.

    Args:
        episodes: ``[step, return, length]`` of every episode that ended, in order.
        evaluations: ``[step, mean return, standard deviation]`` of the best actions.
        coverage: ``[step, cells]`` where states were counted.
    """

    episodes: list[list[float]] = field(default_factory=list)
    evaluations: list[list[float]] = field(default_factory=list)
    coverage: list[list[float]] = field(default_factory=list)

    def first_return_above(self, threshold: float) -> float | None:
        """The step at whose end an episode first returned more than ``threshold``; ``None`` if none did."""
        return next((step for step, total, _ in self.episodes if total > threshold), None)

    def mean_return(self, last: int = 20) -> float:
        """Of the last episodes; NaN without episodes."""
        totals = [total for _, total, _ in self.episodes[-last:]]
        return float(np.mean(totals)) if totals else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunResult:
        """Undoes :meth:`to_dict`."""
        return cls(**{name: [list(row) for row in data[name]] for name in ("episodes", "evaluations", "coverage")})


def evaluate_agent(agent: Agent, make: MakeEnvironment, *, episodes: int = 10, seed: int = 0) -> list[float]:
    """Returns of whole episodes of the agent's best actions; it learns nothing from them.

    Args:
        agent: built for such an environment.
        make: see :class:`Environments`.
        episodes: >= 1.
        seed: of the episodes.
    """
    if episodes < 1:
        raise ValueError(f"episodes={episodes} must be at least 1")
    environments = Environments(make, seed=seed)
    agent.check_spaces(environments)
    returns: list[float] = []
    while len(returns) < episodes:
        _, ends = environments.step(agent.best(environments.observations))
        returns += [end.total for end in ends]
    environments.close()
    return returns


def run_agent(
    agent: Agent,
    make: MakeEnvironment,
    *,
    steps: int,
    seed: int = 0,
    evaluate_every: int = 0,
    evaluation_episodes: int = 10,
    coverage: StateCoverage | None = None,
    folder: str | Path | None = None,
    checkpoint_every: int = 5000,
    should_stop: Callable[[], bool] = lambda: False,
    watcher: Callable[[int, RunResult], None] = lambda step, result: None,
) -> RunResult:
    """Act, learn, evaluate.

    With a folder, ``checkpoint.pt`` there is replaced every so many steps, when the run is stopped and when an
    environment fails. A run that was killed goes on from it, in the middle of episodes, when it is called again with
    an agent that was built in the same way: the actions of the episodes under way are replayed, and the run ends, on
    the same CPU, as if nothing had happened. See :class:`Environments` for what that needs.

    Args:
        agent: new; built for ``Environments(make, count=agent.count)``.
        make: environment.
        steps: of all copies together, >= 1; rounded up to a multiple of ``agent.count``.
        seed: of the episodes, >= 0.
        evaluate_every: steps between evaluations; 0 for none.
        evaluation_episodes: of an evaluation.
        coverage: counts the states that were reached; part of the checkpoint.
        folder: made if need be; ``None`` keeps nothing.
        checkpoint_every: steps, >= 1.
        should_stop: asked after every step; where it says yes, a checkpoint is written.
        watcher: told the step and the result so far after every episode.

    Raises:
        StoppedError: if ``should_stop`` said so.
        EnvironmentFailure: if an environment raises or returns numbers that are not finite. With the same call, and an
            environment that does not fail, the run goes on with the action that failed.
        SpaceMismatchError: if agent and environment do not fit.
        CheckpointError: if the checkpoint is damaged or of another run, or the environment cannot be replayed.
        ValueError: if a number is out of range.
    """
    for name, value, least in (("steps", steps, 1), ("checkpoint_every", checkpoint_every, 1),
                               ("evaluate_every", evaluate_every, 0)):  # fmt: skip
        if value < least:
            raise ValueError(f"{name}={value} must be at least {least}")
    environments = Environments(make, count=agent.count, seed=seed)
    agent.check_spaces(environments)
    run = _Run(agent, environments, None if folder is None else Path(folder) / "checkpoint.pt", seed, coverage)
    run.begin()
    count, result = agent.count, run.result
    while run.step < steps:
        before = run.step
        try:
            ended = run.advance()
        except EnvironmentFailure:
            run.save()
            raise
        if evaluate_every and before // evaluate_every < run.step // evaluate_every:
            returns = evaluate_agent(agent, make, episodes=evaluation_episodes, seed=seed + EVALUATION_SEED)
            result.evaluations.append([float(run.step), float(np.mean(returns)), float(np.std(returns))])
        if coverage is not None and before // coverage.every < run.step // coverage.every:
            result.coverage.append([float(run.step), float(len(coverage))])
        if ended:
            watcher(run.step, result)
        stop = should_stop() and run.step < steps
        if stop or run.step >= steps or before // checkpoint_every < (before + count) // checkpoint_every:
            run.save()
        if stop:
            environments.close()
            raise StoppedError(f"stopped after step {run.step} of {steps}")
    environments.close()
    return result


class _Run:
    """The state of :func:`run_agent`."""

    def __init__(
        self,
        agent: Agent,
        environments: Environments,
        path: Path | None,
        seed: int,
        coverage: StateCoverage | None,
    ) -> None:
        self.agent, self.environments, self.path, self.coverage = agent, environments, path, coverage
        self.step = 0
        self.result = RunResult()
        self.pending: torch.Tensor | None = None
        """Actions that were chosen but not carried out."""
        self.description = description_of(agent, run_seed=seed)

    def advance(self) -> bool:
        """One step of all copies; whether an episode ended."""
        if self.pending is None:
            self.pending = self.agent.act(self.environments.observations)
        transitions, ends = self.environments.step(self.pending)
        self.pending = None
        self.step += self.agent.count
        if self.coverage is not None:
            self.coverage.add(transitions.following)
        self.result.episodes += [[float(self.step), end.total, float(end.length)] for end in ends]
        self.agent.observe(transitions)
        return bool(ends)

    def begin(self) -> None:
        """From the checkpoint, or from the beginning."""
        content = None if self.path is None else read_checkpoint(self.path)
        if content is None:
            return
        if content.get("run") != self.description:
            raise CheckpointError(
                f"{self.path} is of another run: {difference(content.get('run'), self.description)}; give the same "
                "arguments, or another folder"
            )
        self.step, self.pending = int(content["step"]), content["pending"]
        restored = RunResult.from_dict(content["result"])
        self.result.episodes, self.result.evaluations = restored.episodes, restored.evaluations
        self.result.coverage = restored.coverage
        self.agent.load_state_dict(content["agent"])
        self.environments.load_state_dict(content["environments"])
        if self.coverage is not None:
            self.coverage.load_state_dict(content["coverage"])

    def save(self) -> None:
        """Write where the run stands."""
        if self.path is None:
            return
        write_checkpoint(
            self.path,
            {
                "run": self.description,
                "step": self.step,
                "pending": self.pending,
                "result": self.result.to_dict(),
                "agent": self.agent.state_dict(),
                "environments": self.environments.state_dict(),
                "coverage": None if self.coverage is None else self.coverage.state_dict(),
            },
        )
