"""How much does a posterior over a network's weights save a contextual bandit?

Every agent plays a wheel, handwritten digits and breast cancer cells. Neural agents are perceptrons d-50-50-K that take
five steps every ten rounds; each has two configurations, and the one with the smaller regret with seed 0 is run with the
other seeds. Regret is the expected reward that was missed.

    OMP_NUM_THREADS=1 python -m benchmarks.rl.bandits run           # reduced: 10 agents, 3 bandits, 5 seeds
    OMP_NUM_THREADS=1 python -m benchmarks.rl.bandits run --bandits wheel wheel-0.9 digits breast-cancer \
        --rounds 5000 --agents uniform linear greedy epsilon-greedy ensemble last-layer vogn vadam kfac ekfac slang
    python -m benchmarks.rl.bandits report
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import command, deadline_of, environment, mean_error, read_cell, run_cells, study_parser, write_cell
from vogn.rl import BANDIT_AGENTS, BANDITS, make_bandit_agent, run_bandit

RESULTS = Path(__file__).parents[1] / "results" / "rl" / "bandits"
MODULE = "benchmarks.rl.bandits"
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
AGENTS = [name for name in GRIDS if name != "slang"]


def cell(settings: dict[str, Any], path: Path) -> None:
    """One agent with its options on one bandit with one seed."""
    info = BANDITS[settings["bandit"]]
    problem = info.make(settings["rounds"] or info.rounds, seed=settings["seed"])
    options = info.options | settings["options"]
    agent = make_bandit_agent(settings["agent"], problem, seed=settings["seed"], **options)
    scratch = path.with_suffix(".run")
    started = time.process_time()
    found = run_bandit(agent, problem, folder=scratch, checkpoint_every=10_000)
    curve = [round(value, 3) for value in found.cumulative_regret][9::10]
    record = {"settings": settings, **found.metrics, "curve": curve, "seconds": time.process_time() - started}
    write_cell(path, record)
    (scratch / "checkpoint.pt").unlink()
    scratch.rmdir()


def planned(arguments: argparse.Namespace, bandit: str, agent: str, options: dict[str, Any], seed: int) -> Any:
    """File and arguments of a cell."""
    settings = {"bandit": bandit, "agent": agent, "options": options, "seed": seed, "rounds": arguments.rounds}
    name = "_".join([agent, *(f"{key}{value:g}" for key, value in options.items()), f"seed{seed}"])
    path = arguments.results / bandit / f"{name}.json"
    return path, ["cell", "--cell", str(path), "--settings", json.dumps(settings)]


def finish(cells: list[Any], arguments: argparse.Namespace, deadline: float | None) -> None:
    _, left = run_cells(MODULE, cells, jobs=arguments.jobs, deadline=deadline)
    if left:
        print(f"{left} cells left; call again to continue")
        sys.exit(3)


def chosen(arguments: argparse.Namespace, bandit: str, agent: str) -> dict[str, Any]:
    """The configuration with the smaller regret with seed 0."""
    if len(GRIDS[agent]) == 1:
        return GRIDS[agent][0]

    def regret(options: dict[str, Any]) -> float:
        record = read_cell(planned(arguments, bandit, agent, options, 0)[0])
        assert record is not None
        return float(record["cumulative_regret"])

    return min(GRIDS[agent], key=regret)


def summary(arguments: argparse.Namespace) -> dict[str, Any]:
    tables: dict[str, Any] = {}
    for bandit in arguments.bandits:
        for agent in arguments.agents:
            options = chosen(arguments, bandit, agent)
            records = [read_cell(planned(arguments, bandit, agent, options, s)[0]) for s in arguments.seeds]
            assert all(records), f"{bandit}, {agent}: cells are missing"
            figures = {
                key: mean_error([record[key] for record in records])  # type: ignore[index]
                for key in ("cumulative_regret", "regret_per_round_at_end", "mean_reward", "seconds")
            }
            curves = np.array([record["curve"] for record in records])  # type: ignore[index]
            curve = [mean_error(column) for column in curves[:, :: max(1, curves.shape[1] // 50)].T]
            tables.setdefault(bandit, {})[agent] = {"options": options, **figures, "curve": curve}
    minutes = sum(
        read_cell(path)["seconds"]  # type: ignore[index]
        for path in arguments.results.glob("*/*.json")
    ) / 60
    return {"command": command(MODULE), "environment": environment(), "cpu_minutes": minutes, "bandits": tables}


def report(arguments: argparse.Namespace) -> None:
    found = summary(arguments)
    write_cell(arguments.results / "summary.json", found, sort_keys=False)
    print(f"{len(arguments.seeds)} seeds, {found['cpu_minutes']:.1f} CPU minutes of all cells")
    for bandit, rows in found["bandits"].items():
        print(f"\n{bandit}: mean and standard error over seeds\n\n| agent | regret | regret a round at the end | CPU s |")
        print("| --- | --- | --- | --- |")
        for agent, row in rows.items():
            (a, b), (c, d) = row["cumulative_regret"], row["regret_per_round_at_end"]
            print(f"| {agent} | {a:.0f} ± {b:.0f} | {c:.3f} ± {d:.3f} | {row['seconds'][0]:.1f} |")
    plot(found["bandits"], arguments.results / "regret.png")


def plot(tables: dict[str, Any], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(tables), 4), layout="constrained")
    for axes, (bandit, rows) in zip(figure.subplots(1, len(tables), squeeze=False)[0], tables.items(), strict=True):
        for number, (agent, row) in enumerate(rows.items()):
            if agent == "uniform":
                continue
            mean, error = np.array(row["curve"]).T
            rounds = np.linspace(0, 1, len(mean))
            axes.plot(rounds, mean, "-" if number < 6 else "--", label=agent)
            axes.fill_between(rounds, mean - error, mean + error, alpha=0.15)
        axes.set(title=bandit, xlabel="share of the rounds", ylabel="cumulative regret")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def main() -> None:
    warnings.filterwarnings("ignore")
    parser = study_parser(__doc__, ("run", "report", "cell"), RESULTS)
    parser.add_argument("--settings")
    parser.add_argument("--rounds", type=int, default=0, help="0: 2000, 1500 and 1000, those of the bandits")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--bandits", nargs="+", choices=list(BANDITS), default=["wheel", "digits", "breast-cancer"])
    parser.add_argument("--agents", nargs="+", choices=list(BANDIT_AGENTS), default=AGENTS)
    arguments = parser.parse_args()
    if arguments.command == "cell":
        cell(json.loads(arguments.settings), arguments.cell)
        return
    if arguments.command == "run":
        deadline = deadline_of(arguments)
        pairs = [(bandit, agent) for bandit in arguments.bandits for agent in arguments.agents]
        grid = [planned(arguments, *pair, options, 0) for pair in pairs for options in GRIDS[pair[1]]
                if len(GRIDS[pair[1]]) > 1]  # fmt: skip
        finish(grid, arguments, deadline)
        final = [planned(arguments, *pair, chosen(arguments, *pair), seed) for pair in pairs for seed in arguments.seeds]
        finish(final, arguments, deadline)
    report(arguments)


if __name__ == "__main__":
    main()
