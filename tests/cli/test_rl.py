"""`vogn rl` end to end: bandits and environments, resume after a signal, and what is refused."""

import json
import os
import signal

import pytest

from vogn.rl import BANDITS
from vogn.rl.bandit_problem import breast_cancer_bandit

SMALL = ["--hidden", "6"]


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def test_agents_side_by_side_on_a_bandit(vogn, tmp_path):
    outcome = vogn("rl", "--task", "breast-cancer", "--steps", "30", *SMALL, "--output", "run")
    assert outcome.code == 0, outcome.err
    found = results(tmp_path / "run")
    assert list(found) == ["epsilon-greedy", "last-layer", "vogn"]
    for name, row in found.items():
        assert row["curve"][-1] == [30, pytest.approx(row["metrics"]["cumulative_regret"])]
        assert f"{name}: cumulative regret {row['metrics']['cumulative_regret']:.4f}" in outcome.out
    assert (tmp_path / "run" / "regret.png").read_bytes().startswith(b"\x89PNG\r\n")
    again = vogn("rl", "--resume", "run")
    assert again.code == 0 and results(tmp_path / "run") == found


def test_agents_in_an_environment_of_ones_own(vogn, tmp_path):
    options = ["--task", "rl_cases:Corridor", "--agent", "dqn,acktr", "--steps", "200", "--evaluation-episodes", "2"]
    outcome = vogn("rl", *options, *SMALL, "--output", "run")
    assert outcome.code == 0, outcome.err
    found = results(tmp_path / "run")
    assert all(len(row["evaluation"]) == 2 and row["metrics"]["episodes"] > 3 for row in found.values())
    assert (tmp_path / "run" / "returns.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_a_signal_is_resumed(vogn, tmp_path, monkeypatch):
    options = ["--task", "breast-cancer", "--agent", "linear,greedy", "--steps", "40", *SMALL]
    assert vogn("rl", *options, "--output", "whole").code == 0

    def interrupting(rounds, *, seed=0):
        problem = breast_cancer_bandit(rounds, seed=seed)
        os.kill(os.getpid(), signal.SIGTERM)
        return problem

    with monkeypatch.context() as patch:
        patch.setitem(BANDITS, "breast-cancer", type(BANDITS["wheel"])(interrupting, 40))
        outcome = vogn("rl", *options, "--output", "run")
    assert outcome.code == 128 + signal.SIGTERM
    assert "vogn rl --resume run" in outcome.err and "stopped after round 1 of 40" in outcome.err
    assert vogn("rl", "--resume", "run").code == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--task", "NoSuch-v0"], "there is no environment 'NoSuch-v0'"),
        (["--task", "no_such_module:make"], "importing 'no_such_module' failed"),
        (["--task", "wheel", "--agent", "dqn"], "unknown agents dqn for wheel"),
        (["--task", "CartPole-v1", "--agent", "ddpg"], "ddpg needs real actions, those of CartPole-v1 are discrete"),
        (["--task", "wheel", "--agent", "vogn,vogn"], "names one twice"),
        (["--task", "wheel", "--discount", "0.5"], "--discount goes with environments"),
        (["--task", "CartPole-v1", "--discount", "1.5"], "--discount 1.5 must be in [0, 1]"),
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--resume", "run", "--seed", "1"], "excludes --output and all settings"),
        (["--hidden", "a"], "must be whole numbers"),
    ],
)
def test_bad_input_is_one_line(vogn, options, message):
    outcome = vogn("rl", *options)
    assert outcome.code == 2 and message in outcome.err and outcome.err.count("\n") == 1


def test_a_failing_environment_is_named_and_the_run_can_go_on(vogn, tmp_path, monkeypatch):
    import rl_cases

    monkeypatch.setattr(rl_cases, "Doomed", lambda: rl_cases.Failing(30, "nan"), raising=False)
    monkeypatch.setattr(rl_cases.Failing, "armed", True)
    options = ["--task", "rl_cases:Doomed", "--agent", "dqn", "--steps", "60", *SMALL]
    outcome = vogn("rl", *options, "--output", "run")
    assert outcome.code == 1 and "the reward is nan" in outcome.err
    monkeypatch.setattr(rl_cases.Failing, "armed", False)
    assert vogn("rl", "--resume", "run").code == 0
    assert vogn("rl", *options, "--output", "whole").code == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")
