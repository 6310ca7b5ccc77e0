"""Does noise on the actor's weights, drawn from a posterior, explore better than noise on its actions?

DDPG on Pendulum, 64-64 hidden units: noise from VAdam's posterior (a draw for every episode), normal noise on actions,
none. Each has two configurations, chosen with seed 0. Figures: mean return over the run, of the last twenty training
episodes, of ten evaluation episodes.

    OMP_NUM_THREADS=1 python -m benchmarks.rl.ddpg run               # reduced: 8k steps
    OMP_NUM_THREADS=1 python -m benchmarks.rl.ddpg run --scale 5
    python -m benchmarks.rl.ddpg report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rl.study import Study, returns_over_steps
from vogn.rl import DDPG, DDPGSettings, Environments, evaluate_agent, run_agent
from vogn.rl.runner import EVALUATION_SEED

STEPS = 8000
GRIDS: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "action": [{"action_noise": 0.1}, {"action_noise": 0.3}],
    "posterior": [{"precision": 1e2}, {"precision": 1e3}],
}


def cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    name, seed, agent = settings["case"], settings["seed"], settings["agent"]
    steps = round(STEPS * settings["scale"])
    chosen = DDPGSettings(update_every=2, **settings["options"])
    learner = DDPG(Environments(name, seed=seed), chosen, exploration=agent, seed=seed)
    found = run_agent(learner, name, steps=steps, seed=seed, folder=folder, checkpoint_every=10**6)
    curve = returns_over_steps(found.episodes, steps)
    final = evaluate_agent(learner, name, seed=seed + EVALUATION_SEED)
    return {
        "mean_return": float(np.mean(curve)), "last_episodes": found.mean_return(20),
        "evaluation": float(np.mean(final)), "regret": -float(np.mean(curve)), "curve": curve,
    }  # fmt: skip


STUDY = Study(
    __doc__, "benchmarks.rl.ddpg", GRIDS, {"Pendulum-v1": {}}, ("Pendulum-v1",), cell, "regret",
    ("mean_return", "last_episodes", "evaluation"), curve=("share of the steps", "return, last 20 episodes"),
)  # fmt: skip

if __name__ == "__main__":
    STUDY.main()
