"""One path of 256 is rewarded, and it costs to try: who finds it?

DeepSea with eight rows. Epsilon-greedy actions change direction at every step, so that long ways are hardly ever gone
to their end. A draw of the weights' posterior steers a whole episode, and it is optimistic where it is uncertain.
"""

from __future__ import annotations

from vogn.rl import DQN, BayesianDQN, DQNSettings, Environments, evaluate_agent, run_agent

EPISODES, ROWS = 100, 8


def main() -> None:
    task = f"DeepSea-{ROWS}"
    settings = DQNSettings(
        hidden=(), noise=0.1, discount=1.0, warmup=10 * ROWS, update_every=2, target_every=20
    )  # values are linear in the one-hot cell: a table
    environments = Environments(task)
    agents = {
        "epsilon-greedy": DQN(environments, settings, lr=0.01, epsilon_steps=1000),
        "mean target": BayesianDQN(environments, settings, target="mean", options={"lr": 0.1, "damping": 0.01}),
        "sampled target": BayesianDQN(environments, settings, options={"lr": 0.1, "damping": 0.01}),
    }
    print(f"{'agent':16s}{'first found in episode':>24s}{'best return now':>18s}")
    for name, agent in agents.items():
        found = run_agent(agent, task, steps=EPISODES * ROWS)
        first = next((n for n, row in enumerate(found.episodes, 1) if row[1] > 0.5), None)
        best = evaluate_agent(agent, task, episodes=1)[0]
        print(f"{name:16s}{'never' if first is None else first:>24}{best:18.2f}")


if __name__ == "__main__":
    main()
