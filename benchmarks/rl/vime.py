"""Does a reward for information gained reach more states, and the goal sooner, than none or the prediction error?

ACKTR learns with nothing but the goal's reward and a bonus; four copies of an environment, policy and critic 64-64, a
dynamics model with 32 hidden units. Figures: cells of a grid over the states that were reached, and steps until the
goal's first reward, all steps where there was none. All settings are defaults, looked at with seed 0, which is not
among the seeds here.

    OMP_NUM_THREADS=1 python -m benchmarks.rl.vime run                      # reduced: MountainCarContinuous, 30k steps
    OMP_NUM_THREADS=1 python -m benchmarks.rl.vime run --cases mountain-car swing-up acrobot --scale 10
    python -m benchmarks.rl.vime report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rl.study import Study
from vogn.rl import ACKTR, ACKTRSettings, Environments, InformationGain, PredictionError, StateCoverage, run_agent

CASES: dict[str, dict[str, Any]] = {
    "mountain-car": {"name": "SparseMountainCarContinuous", "low": [-1.2, -0.07], "high": [0.6, 0.07], "which": [0, 1]},
    "swing-up": {"name": "SparseCartPoleSwingUp", "low": [-1.0, -1.0, -8.0], "high": [1.0, 1.0, 8.0],
                 "which": [2, 3, 4]},
    "acrobot": {"name": "SparseAcrobot", "low": [-1.0, -1.0, -12.57], "high": [1.0, 1.0, 12.57], "which": [0, 2, 4]},
}  # fmt: skip
STEPS = 30_000
GRIDS: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "prediction error": [{}],
    "vime, diagonal": [{}],
    "vime, Kronecker": [{}],
}
METHODS = {"vime, diagonal": "vogn", "vime, Kronecker": "kfac"}


def cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    case, seed, agent = CASES[settings["case"]], settings["seed"], settings["agent"]
    steps = round(STEPS * settings["scale"])
    environments = Environments(case["name"], count=4, seed=seed)
    bonus: Any = None
    if agent in METHODS:
        bonus = InformationGain(environments, method=METHODS[agent], seed=seed, **settings["options"])
    elif agent != "none":
        bonus = PredictionError(environments, seed=seed, **settings["options"])
    shared = ACKTRSettings(rollout=50, shared=False, entropy_weight=0.0)
    learner = ACKTR(environments, shared, bonus=bonus, seed=seed)
    coverage = StateCoverage(case["low"], case["high"], coordinates=case["which"], every=steps // 30)
    found = run_agent(learner, case["name"], steps=steps, seed=seed, coverage=coverage, folder=folder,
                      checkpoint_every=10**6)  # fmt: skip
    first = found.first_return_above(0.5)
    cells = [row[1] for row in found.coverage]
    return {
        "cells": cells[-1], "unreached": -cells[-1], "reached_goal": float(first is not None),
        "steps_to_reward": steps if first is None else first,
        "share_of_successes": float(np.mean([row[1] > 0.5 for row in found.episodes])), "curve": cells,
    }  # fmt: skip


STUDY = Study(
    __doc__, "benchmarks.rl.vime", GRIDS, CASES, ("mountain-car",), cell, "unreached",
    ("cells", "reached_goal", "steps_to_reward", "share_of_successes"), curve=("share of the steps", "cells reached"),
)  # fmt: skip

if __name__ == "__main__":
    STUDY.main()
