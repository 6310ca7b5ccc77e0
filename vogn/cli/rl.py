"""`vogn rl`: agents side by side on a bandit or in an environment, resumable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vogn.cli.errors import UsageError
from vogn.cli.plots import plot_rewards
from vogn.cli.run_folder import RunFolder
from vogn.cli.screen import say
from vogn.cli.side_by_side import Command
from vogn.optim.methods import METHODS
from vogn.rl import (
    BANDIT_AGENTS,
    BANDITS,
    RL_AGENTS,
    EnvironmentFailure,
    Environments,
    SpaceMismatchError,
    evaluate_agent,
    make_agent,
    make_bandit_agent,
    progress_bar,
    run_agent,
    run_bandit,
)
from vogn.rl.runner import EVALUATION_SEED
from vogn.rl.watching import Bar

USUAL = {
    "bandit": ("epsilon-greedy", "last-layer", "vogn"),
    "discrete": ("dqn", "vogn-dqn", "acktr"),
    "real": ("ddpg", "ddpg-posterior", "acktr"),
}
"""Agents where none are named."""


@dataclass(frozen=True)
class RLSettings:
    """What the command line fixes.

    Args:
        task: a name in :data:`vogn.rl.BANDITS` or of an environment (:func:`vogn.rl.environments.named_environment`).
        agents: names in :data:`vogn.rl.BANDIT_AGENTS` (or methods) or in :data:`vogn.rl.RL_AGENTS`.
        steps: rounds, or steps of all copies.
        hidden: widths of the hidden layers.
        discount: of environments.
        evaluation_episodes: at the end, in environments.
        seed: of every run.
        checkpoint_every: rounds or steps.

    Raises:
        UsageError: naming what is out of range.
    """

    task: str
    agents: tuple[str, ...]
    steps: int
    hidden: tuple[int, ...] = (64, 64)
    discount: float = 0.99
    evaluation_episodes: int = 10
    seed: int = 0
    checkpoint_every: int = 2000

    def __post_init__(self) -> None:
        known = (*BANDIT_AGENTS, *METHODS) if self.bandit else tuple(RL_AGENTS)
        unknown = [name for name in self.agents if name not in known]
        if unknown or not self.agents:
            shown = BANDIT_AGENTS if self.bandit else RL_AGENTS
            raise UsageError(f"unknown agents {', '.join(unknown)} for {self.task}; allowed are {', '.join(shown)}")
        if len(set(self.agents)) != len(self.agents):
            raise UsageError(f"--agent names one twice: {', '.join(self.agents)}")
        for name in ("steps", "evaluation_episodes", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} must be at least 0")
        if not self.hidden or min(self.hidden) < 1:
            raise UsageError("--hidden needs widths of at least 1, such as 64,64")
        if not 0 <= self.discount <= 1:
            raise UsageError(f"--discount {self.discount} must be in [0, 1]")

    @property
    def bandit(self) -> bool:
        """Whether the task is one."""
        return self.task in BANDITS


RL = Command("rl", RLSettings)


def rl(
    given: Mapping[str, Any], *, output: Path | None, resume: Path | None, console: Console
) -> dict[str, dict[str, Any]]:
    """Run every agent; a table, a plot and ``results.json`` at the end.

    Args:
        given: fields of :class:`RLSettings` that the command line gave; ``None`` for the others.
        output: folder of a new run; ``None`` makes a name.
        resume: folder of a run to continue; excludes all settings.
        console: where to write.

    Returns:
        Agent to figures.

    Raises:
        UsageError: for settings that do not fit, or an environment that cannot be made.
        EnvironmentFailure: if an environment fails later; a checkpoint is written.
        InterruptedRunError: after a signal; checkpoints are written.
    """
    settings, folder = RL.settled(given, _complete, output=output, resume=resume)
    folder = folder or RL.new_folder(settings, output, data=re.sub(r"[^A-Za-z0-9]+", "-", settings.task).strip("-"))
    say(console, f"{settings.task}, {settings.steps} {'rounds' if settings.bandit else 'steps'}, in {folder.path}")
    results: dict[str, dict[str, Any]] = {}
    with RL.running(folder) as running:
        for agent in settings.agents:
            with running.contender(agent), progress_bar(settings.steps, agent) as bar:
                results[agent] = _run(settings, agent, folder, running.should_stop, bar)
            first = next(iter(results[agent]["metrics"].items()))
            say(console, f"{agent}: {first[0].replace('_', ' ')} {first[1]:.4f}")
    _report(settings, folder, results, console)
    return results


def _complete(chosen: dict[str, Any]) -> RLSettings:
    """Fill in agents and steps.

    Raises:
        UsageError: if the task is unknown, or an option would do nothing.
    """
    task = chosen.setdefault("task", "wheel")
    if task in BANDITS:
        for name in ("discount", "evaluation_episodes"):
            if name in chosen:
                raise UsageError(f"--{name.replace('_', '-')} goes with environments; {task} is a bandit")
        kind = "bandit"
        chosen.setdefault("steps", BANDITS[task].rounds)
    else:
        kind = "real" if _environments(task, 1, 0).actions is None else "discrete"
        chosen.setdefault("steps", 20_000)
    chosen.setdefault("agents", USUAL[kind])
    settings = RLSettings(**chosen)
    for agent in settings.agents if kind != "bandit" else ():
        needed = RL_AGENTS[agent].actions
        if needed not in ("any", kind):
            fitting = [name for name, info in RL_AGENTS.items() if info.actions in ("any", kind)]
            raise UsageError(f"{agent} needs {needed} actions, those of {task} are {kind}: {', '.join(fitting)} fit")
    return settings


def _environments(task: str, count: int, seed: int) -> Environments:
    """Raises UsageError where they cannot be made."""
    try:
        return Environments(task, count=count, seed=seed)
    except (EnvironmentFailure, SpaceMismatchError) as error:
        raise UsageError(f"--task {task!r}: {error} (bandits are {', '.join(BANDITS)})") from error


def _run(settings: RLSettings, agent: str, folder: RunFolder, should_stop: Any, bar: Bar) -> dict[str, Any]:
    common = {"folder": folder.path / agent, "checkpoint_every": settings.checkpoint_every, "should_stop": should_stop}
    if settings.bandit:
        info = BANDITS[settings.task]
        problem = info.make(settings.steps, seed=settings.seed)
        options = {} if agent == "uniform" else dict(info.options)
        player = make_bandit_agent(agent, problem, hidden=settings.hidden, seed=settings.seed, **options)
        played = run_bandit(player, problem, watcher=bar.round_done, **common)
        return {"metrics": played.metrics, "curve": list(enumerate(played.cumulative_regret, 1))}
    environments = _environments(settings.task, RL_AGENTS[agent].copies, settings.seed)
    learner = make_agent(agent, environments, hidden=settings.hidden, discount=settings.discount, seed=settings.seed)
    found = run_agent(
        learner, settings.task, steps=settings.steps, seed=settings.seed, watcher=bar.episode_done, **common
    )
    episodes = settings.evaluation_episodes
    returns = evaluate_agent(learner, settings.task, episodes=episodes, seed=settings.seed + EVALUATION_SEED)
    metrics = {
        "evaluation_return": sum(returns) / len(returns),
        "return_of_last_20_episodes": found.mean_return(20) if found.episodes else None,
        "episodes": float(len(found.episodes)),
    }
    return {"metrics": metrics, "evaluation": returns, "curve": [row[:2] for row in found.episodes]}


def _report(settings: RLSettings, folder: RunFolder, results: Mapping[str, dict[str, Any]], console: Console) -> None:
    folder.write_json("results.json", {"rl": asdict(settings), "results": dict(results)})
    curves = {agent: found["curve"] for agent, found in results.items()}
    if settings.bandit:
        plot_rewards(curves, folder.path / "regret.png", xlabel="rounds", ylabel="cumulative regret")
    else:
        plot_rewards(curves, folder.path / "returns.png", xlabel="steps", ylabel="return", window=20)
    table = Table(title=f"{settings.task}, {settings.steps} {'rounds' if settings.bandit else 'steps'}")
    table.add_column("agent")
    for key in next(iter(results.values()))["metrics"]:
        table.add_column(key.replace("_", " "), justify="right")
    for agent, found in results.items():
        table.add_row(agent, *("-" if v is None else f"{v:.4f}" for v in found["metrics"].values()))
    console.print(table)
    say(console, f"Everything is in {folder.path}")
