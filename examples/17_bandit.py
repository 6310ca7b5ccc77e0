"""What does it cost to learn by trying, and how much of it does a posterior save?

Handwritten digits as a bandit: an agent sees an image, guesses one of ten labels, and is told only whether it was
right. Regret counts the wrong guesses. Thompson sampling draws weights from the posterior and guesses what is best for
them: it tries what it is unsure of, and stops trying what it knows.
"""

from __future__ import annotations

from vogn.rl import digits_bandit, make_bandit_agent, run_bandit

AGENTS = ("uniform", "linear", "epsilon-greedy", "vogn", "kfac")
ROUNDS = 300


def main() -> None:
    problem = digits_bandit(ROUNDS, seed=1)
    print(f"{'agent':16s}{'wrong of 300':>14s}{'of the last 100':>18s}")
    for name in AGENTS:
        agent = make_bandit_agent(name, problem, seed=1)
        regret = run_bandit(agent, problem).regret
        print(f"{name:16s}{sum(regret):14.0f}{sum(regret[-100:]):18.0f}")


if __name__ == "__main__":
    main()
