"""Does a trust region in Kronecker factors learn from fewer steps than A2C and PPO?

Equal environment steps: CartPole 20k, Pendulum 30k; networks 64-64 (tanh). Every agent has four configurations; the
one with the largest mean return over the run is chosen with seed 0, which is not among the seeds of the table. A2C and
PPO are those of stable-baselines3: their defaults (eight copies for A2C, one for PPO), and what is recommended for such
tasks (larger rates, rewards scaled by ``VecNormalize``, several copies, state-dependent noise for Pendulum). The
discount of Pendulum is 0.9 for all. Figures: the mean return of training episodes over the whole run (speed), of the
last twenty, and of ten evaluation episodes at the end.

    OMP_NUM_THREADS=1 python -m benchmarks.rl.acktr run
    OMP_NUM_THREADS=1 python -m benchmarks.rl.acktr run --scale 5
    python -m benchmarks.rl.acktr report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rl.study import Study, returns_over_steps
from vogn.rl import ACKTR, ACKTRSettings, Environments, evaluate_agent, run_agent
from vogn.rl.runner import EVALUATION_SEED

CASES: dict[str, dict[str, Any]] = {
    "CartPole-v1": {"steps": 20_000, "discount": 0.99, "entropy_weight": 0.01},
    "Pendulum-v1": {"steps": 30_000, "discount": 0.9, "entropy_weight": 0.0},
}
TRUST: list[dict[str, Any]] = [{}, {"delta": 0.003}, {"delta": 0.03}, {"lr": 0.5}]
SCALED = {"normalize": True, "gae_lambda": 0.9}
GRIDS: dict[str, list[dict[str, Any]]] = {
    "acktr, shared": TRUST,
    "acktr, separate": TRUST,
    "a2c": [
        {},
        {"learning_rate": 3e-3},
        {"learning_rate": 7e-4, "n_steps": 8, "sde": True, **SCALED},
        {"learning_rate": 3e-3, "n_steps": 8, "sde": True, **SCALED},
    ],
    "ppo": [
        {},
        {"copies": 8, "n_steps": 32, "batch_size": 256, "n_epochs": 20, "gae_lambda": 0.8, "learning_rate": 1e-3},
        {"copies": 4, "n_steps": 128, "learning_rate": 1e-3, "sde": True, **SCALED},
        {"copies": 4, "n_steps": 512, "learning_rate": 1e-3, "sde": True, **SCALED},
    ],
}


def cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    case, seed, agent = CASES[settings["case"]], settings["seed"], settings["agent"]
    steps = round(case["steps"] * settings["scale"])
    if agent.startswith("acktr"):
        chosen = ACKTRSettings(
            shared=agent.endswith("shared"), discount=case["discount"], entropy_weight=case["entropy_weight"],
            **settings["options"],
        )  # fmt: skip
        learner = ACKTR(Environments(settings["case"], count=8, seed=seed), chosen, seed=seed)
        found = run_agent(learner, settings["case"], steps=steps, seed=seed, folder=folder, checkpoint_every=10**6)
        episodes = found.episodes
        final = evaluate_agent(learner, settings["case"], seed=seed + EVALUATION_SEED)
    else:
        episodes, final = peer(settings, case, steps)
    totals = [row[1] for row in episodes]
    curve = returns_over_steps(episodes, steps)
    return {
        "mean_return": float(np.mean(curve)), "last_episodes": float(np.mean(totals[-20:])),
        "evaluation": float(np.mean(final)), "regret": -float(np.mean(curve)), "curve": curve,
    }  # fmt: skip


def peer(settings: dict[str, Any], case: dict[str, Any], steps: int) -> tuple[list[list[float]], list[float]]:
    """A2C or PPO of stable-baselines3."""
    import gymnasium
    import stable_baselines3
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    class Episodes(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.rows: list[list[float]] = []

        def _on_step(self) -> bool:
            for info in self.locals["infos"]:
                if "episode" in info:
                    self.rows.append([float(self.num_timesteps), float(info["episode"]["r"]), info["episode"]["l"]])
            return True

    options = dict(settings["options"])
    copies = options.pop("copies", 8 if settings["agent"] == "a2c" else 1)
    environments: Any = make_vec_env(settings["case"], n_envs=copies, seed=settings["seed"])
    if options.pop("normalize", False):  # rewards only: evaluations and the table are in the environment's own
        environments = VecNormalize(environments, norm_obs=False, gamma=case["discount"])
    if options.pop("sde", False) and isinstance(environments.action_space, gymnasium.spaces.Box):
        options["use_sde"] = True
    kind = {"a2c": stable_baselines3.A2C, "ppo": stable_baselines3.PPO}[settings["agent"]]
    model = kind(
        "MlpPolicy", environments, gamma=case["discount"], seed=settings["seed"], device="cpu", **options
    )
    seen = Episodes()
    model.learn(steps, callback=seen)
    test = make_vec_env(lambda: gymnasium.make(settings["case"]), seed=settings["seed"] + EVALUATION_SEED)
    returns, _ = evaluate_policy(model, test, n_eval_episodes=10, return_episode_rewards=True)
    return seen.rows, [float(value) for value in returns]


STUDY = Study(
    __doc__, "benchmarks.rl.acktr", GRIDS, CASES, tuple(CASES), cell, "regret",
    ("mean_return", "last_episodes", "evaluation"), curve=("share of the steps", "return, last 20 episodes"),
)  # fmt: skip

if __name__ == "__main__":
    STUDY.main()
