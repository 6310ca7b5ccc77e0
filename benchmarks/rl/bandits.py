"""How much does a posterior over a network's weights save a contextual bandit?

Every agent plays a wheel, handwritten digits and breast cancer cells. Neural agents are perceptrons d-50-50-K that take
five steps every ten rounds; each has two configurations, and the one with the smaller regret with seed 0 is run with
the other seeds. Regret is the expected reward that was missed.

    OMP_NUM_THREADS=1 python -m benchmarks.rl.bandits run           # reduced: 9 agents, 3 bandits, 5 seeds
    OMP_NUM_THREADS=1 python -m benchmarks.rl.bandits run --cases wheel wheel-0.9 digits breast-cancer --scale 3 \
        --agents uniform linear greedy epsilon-greedy ensemble last-layer vogn vadam kfac ekfac slang
    python -m benchmarks.rl.bandits report
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.rl.study import Study, thinned
from vogn.rl import BANDITS, make_bandit_agent, run_bandit

COLD = [{"temperature": 0.1}, {"temperature": 0.01}]
GRIDS: dict[str, list[dict[str, Any]]] = {
    "uniform": [{}],
    "linear": [{}],
    "greedy": [{"lr": 3e-3}, {"lr": 1e-2}],
    "epsilon-greedy": [{"epsilon": 0.1}, {"epsilon": 0.1, "decay_rounds": 300.0}],
    "ensemble": [{"lr": 3e-3}, {"lr": 1e-2}],
    "last-layer": [{"noise": 0.3}, {"noise": 0.1}],
    "vogn": COLD,
    "vadam": COLD,
    "kfac": COLD,
    "ekfac": COLD,
    "slang": COLD,
}
"""Agent to its configurations; the table has this order."""


def cell(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One agent with its options on one bandit with one seed."""
    info = BANDITS[settings["case"]]
    problem = info.make(round(info.rounds * settings["scale"]), seed=settings["seed"])
    agent = make_bandit_agent(settings["agent"], problem, seed=settings["seed"], **info.options | settings["options"])
    found = run_bandit(agent, problem, folder=folder, checkpoint_every=10**6)
    return {**found.metrics, "curve": thinned(found.cumulative_regret)}


STUDY = Study(
    __doc__, "benchmarks.rl.bandits", GRIDS, {name: {} for name in BANDITS}, ("wheel", "digits", "breast-cancer"), cell,
    "cumulative_regret", ("cumulative_regret", "regret_per_round_at_end"),
    agents=[name for name in GRIDS if name not in ("ekfac", "slang")],
    curve=("share of the rounds", "cumulative regret"), undrawn=("uniform", "linear"),
)  # fmt: skip

if __name__ == "__main__":
    STUDY.main()
