"""Deep exploration where random actions nearly do: CartPole and MountainCar, 50k steps in the full form.

Double DQN with 64-64 hidden units. Epsilon-greedy and NoisyNet are trained by Adam, the others by variational natural
gradients with one draw of the weights for every episode. Figures: mean return over the run, steps until the first
episode that reached the goal of MountainCar (return above -200) or 475 steps of CartPole, all steps where none did.

    OMP_NUM_THREADS=1 python -m benchmarks.rl.control run                  # reduced: 10k and 20k steps
    OMP_NUM_THREADS=1 python -m benchmarks.rl.control run --scale 5        # CartPole in full; 2.5 for MountainCar
    python -m benchmarks.rl.control report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rl.study import Study, returns_over_steps
from vogn.rl import DQN, BayesianDQN, DQNSettings, Environments, NoisyDQN, evaluate_agent, run_agent
from vogn.rl.runner import EVALUATION_SEED

CASES: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"steps": 10_000, "goal": 474.0},
    "MountainCar-v0": {"steps": 20_000, "goal": -200.0},
}
GRIDS: dict[str, list[dict[str, Any]]] = {
    "epsilon-greedy": [{}],
    "noisy": [{}],
    "vogn": [{}],
    "vadam": [{}],
    "kfac": [{}],
}


def cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    case, seed, agent, name = CASES[settings["case"]], settings["seed"], settings["agent"], settings["case"]
    steps = round(case["steps"] * settings["scale"])
    environments = Environments(name, seed=seed)
    shared = DQNSettings(noise=1.0, update_every=4, target_every=50, warmup=1000)
    learner: Any
    if agent == "epsilon-greedy":
        learner = DQN(environments, shared, seed=seed, epsilon_steps=steps // 4)
    elif agent == "noisy":
        learner = NoisyDQN(environments, shared, seed=seed)
    else:
        options = {"initial_curvature": 0.01} if agent == "vadam" else {}
        learner = BayesianDQN(
            environments, shared, seed=seed, method=agent, options=options, prior_precision=10.0, temperature=1.0,
            target="mean", **settings["options"],
        )  # fmt: skip
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
    curve=("share of the steps", "return, last 20 episodes"),
)  # fmt: skip

if __name__ == "__main__":
    STUDY.main()
