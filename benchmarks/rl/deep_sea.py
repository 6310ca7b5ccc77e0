"""Does a draw of the posterior for every episode find the one rewarded path of DeepSea?

Values are linear in the one-hot observation (a table, learnt by gradients) or a perceptron with 50 hidden units. An
agent has solved a sea when its best actions reach the treasure; the run ends there. Figures: episodes until the
treasure was first touched and until the sea was solved, the number of all episodes where it was not. "More updates" has
twice the updates, larger batches and faster targets; its settings were found on N = 20 with seed 1.

    OMP_NUM_THREADS=1 python -m benchmarks.rl.deep_sea run               # reduced: N = 10, 20 linear, N = 10 hidden
    OMP_NUM_THREADS=1 python -m benchmarks.rl.deep_sea run --all --cases linear-20 linear-30 hidden-20
    python -m benchmarks.rl.deep_sea report
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.rl.study import Study, thinned
from vogn.errors import StoppedError
from vogn.rl import DQN, BayesianDQN, DQNSettings, Environments, NoisyDQN, RunResult, ValueLearner, run_agent
from vogn.rl.deep_sea import DeepSea

CASES: dict[str, dict[str, Any]] = {
    f"{kind}-{size}": {"size": size, "hidden": [] if kind == "linear" else [50], "episodes": episodes, "every": every}
    for kind in ("linear", "hidden")
    for size, episodes, every in ((10, 400, 2), (20, 600, 4), (30, 1500, 4))
}
TEMPERATURES = [{"temperature": 1.0}, {"temperature": 0.1}]
GRIDS: dict[str, list[dict[str, Any]]] = {
    "epsilon-greedy": [{"lr": 1e-2}],
    "noisy": [{"lr": 1e-2}],
    "vogn": TEMPERATURES,
    "vogn, more updates": [{}],
    "vogn, mean target": TEMPERATURES,
    "vadam": TEMPERATURES,
    "kfac": TEMPERATURES,
}
OPTIONS = {
    "vogn": {"lr": 0.1, "damping": 0.01},
    "kfac": {"lr": 0.1, "damping": 0.01},
    "vadam": {"lr": 1e-2, "initial_curvature": 0.01},
}


def build(agent: str, options: dict[str, Any], environments: Environments, settings: DQNSettings, seed: int) -> Any:
    if agent == "epsilon-greedy":
        return DQN(environments, settings, seed=seed, epsilon=(1.0, 0.05), epsilon_steps=4000, **options)
    if agent == "noisy":
        return NoisyDQN(environments, settings, seed=seed, **options)
    method, _, variant = agent.partition(", ")
    target: Any = "mean" if variant == "mean target" else "sample"
    chosen = OPTIONS[method]
    if variant == "more updates":
        settings = replace(settings, update_every=settings.update_every // 2, target_every=10, batch_size=256)
        chosen = {"lr": 0.3, "damping": 0.001}
    return BayesianDQN(environments, settings, seed=seed, method=method, options=chosen, target=target, **options)


def cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    case = CASES[settings["case"]]
    size, episodes, seed = case["size"], round(case["episodes"] * settings["scale"]), settings["seed"]

    def make() -> DeepSea:
        return DeepSea(size, mapping_seed=seed)

    shared = DQNSettings(
        hidden=tuple(case["hidden"]), discount=1.0, noise=0.1, warmup=10 * size, update_every=case["every"],
        target_every=20,
    )  # fmt: skip
    agent: ValueLearner = build(settings["agent"], settings["options"], Environments(make, seed=seed), shared, seed)
    solved: list[int] = []
    kept = RunResult()

    def watch(step: int, result: RunResult) -> None:
        kept.episodes, kept.evaluations = result.episodes, result.evaluations
        if not solved and result.evaluations and result.evaluations[-1][1] > 0.9:
            solved.append(len(result.episodes))

    with suppress(StoppedError):
        run_agent(agent, make, steps=episodes * size, seed=seed, evaluate_every=10 * size, evaluation_episodes=1,
                  folder=folder, checkpoint_every=10**6, watcher=watch, should_stop=lambda: bool(solved))  # fmt: skip
    touched = next((n for n, row in enumerate(kept.episodes, 1) if row[1] > 0.5), episodes)
    share = [float(bool(solved) and n >= solved[0]) for n in range(1, episodes + 1)]
    return {
        "solved": float(bool(solved)), "episodes_to_solve": solved[0] if solved else episodes,
        "episodes_to_treasure": touched, "curve": thinned(share, 40),
    }  # fmt: skip


STUDY = Study(
    __doc__, "benchmarks.rl.deep_sea", GRIDS, CASES, ("linear-10", "linear-20", "hidden-10"), cell,
    "episodes_to_solve", ("solved", "episodes_to_treasure", "episodes_to_solve"),
    dear=frozenset({("linear-20", "kfac"), ("linear-10", "vogn, more updates"), ("hidden-10", "vogn, more updates")}),
    curve=("share of the episodes", "share of seeds that solved it"),
)  # fmt: skip

if __name__ == "__main__":
    STUDY.main()
