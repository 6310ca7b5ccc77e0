"""Deep exploration where random actions nearly do: CartPole and MountainCar, 50,000 steps.

Double DQN with 64-64 hidden units. Epsilon-greedy and NoisyNet are trained by Adam, the others by natural gradients.
The variational rows draw weights for every episode; targets are those of the mean, or of a draw where the row says so.
"kfac, epsilon" is the same K-FAC without noise, which explores as epsilon-greedy does: what the step gives without the
posterior. Figures: mean return over the run, steps until the first episode that reached the goal of MountainCar (return
above -200) or 475 steps of CartPole, all steps where none did.

    OMP_NUM_THREADS=1 python -m benchmarks.rl.control run                  # an hour of CPU
    OMP_NUM_THREADS=1 python -m benchmarks.rl.control run --scale 0.2      # the first fifth of it
    python -m benchmarks.rl.control report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.rl.study import Study, returns_over_steps
from vogn.rl import DQN, BayesianDQN, DQNSettings, Environments, NoisyDQN, evaluate_agent, run_agent
from vogn.rl.runner import EVALUATION_SEED

CASES: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"steps": 50_000, "goal": 474.0},
    "MountainCar-v0": {"steps": 50_000, "goal": -200.0},
}
GRIDS: dict[str, list[dict[str, Any]]] = {
    "epsilon-greedy": [{}],
    "noisy": [{}],
    "vogn": [{}],
    "vadam": [{}],
    "kfac": [{}],
    "kfac, epsilon": [{}],
    "vogn, drawn targets": [{}],
    "kfac, drawn targets": [{}],
}


class EpsilonGreedy(BayesianDQN):
    """The optimizer's deterministic twin; random actions as often as :class:`DQN` takes them."""

    def __init__(self, *args: Any, epsilon_steps: int, **options: Any) -> None:
        super().__init__(*args, options={"variational": False}, **options)
        self.epsilon_steps = epsilon_steps

    def explore(self, observations: Tensor) -> Tensor:
        epsilon = 1 - 0.95 * min(1.0, self.buffer.seen / self.epsilon_steps)
        random = torch.from_numpy(self.generator.integers(self.choices, size=len(observations)))
        chosen = torch.from_numpy(self.generator.uniform(size=len(observations)) < epsilon)
        return torch.where(chosen, random, self.best(observations))


def agent_of(name: str, environments: Environments, seed: int, steps: int) -> Any:
    shared = DQNSettings(noise=1.0, update_every=4, target_every=50, warmup=1000)
    if name == "epsilon-greedy":
        return DQN(environments, shared, seed=seed, epsilon_steps=steps // 4)
    if name == "noisy":
        return NoisyDQN(environments, shared, seed=seed)
    method, _, variant = name.partition(", ")
    target: Any = "sample" if variant == "drawn targets" else "mean"
    usual: dict[str, Any] = {"seed": seed, "method": method, "prior_precision": 10.0, "target": target}
    if variant == "epsilon":
        return EpsilonGreedy(environments, shared, epsilon_steps=steps // 4, **usual)
    options = {"initial_curvature": 0.01} if method == "vadam" else {}
    return BayesianDQN(environments, shared, options=options, **usual)


def cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    case, seed, name = CASES[settings["case"]], settings["seed"], settings["case"]
    steps = round(case["steps"] * settings["scale"])
    learner = agent_of(settings["agent"], Environments(name, seed=seed), seed, steps)
    found = run_agent(learner, name, steps=steps, seed=seed, folder=folder, checkpoint_every=10**6)
    first = found.first_return_above(case["goal"])
    curve = returns_over_steps(found.episodes, steps)
    final = evaluate_agent(learner, name, seed=seed + EVALUATION_SEED)
    return {
        "mean_return": float(np.mean(curve)), "evaluation": float(np.mean(final)), "regret": -float(np.mean(curve)),
        "reached_goal": float(first is not None), "steps_to_goal": steps if first is None else first, "curve": curve,
    }  # fmt: skip


STUDY = Study(
    __doc__, "benchmarks.rl.control", GRIDS, CASES, tuple(CASES), cell, "regret",
    ("mean_return", "evaluation", "reached_goal", "steps_to_goal"),
    dear=frozenset(
        {("CartPole-v1", "vogn, drawn targets"), ("CartPole-v1", "kfac, drawn targets"),
         ("MountainCar-v0", "kfac, drawn targets")}
    ),  # fmt: skip
    curve=("share of the steps", "return, last 20 episodes"),
)  # fmt: skip

if __name__ == "__main__":
    STUDY.main()
