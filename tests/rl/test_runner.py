"""Runs: killed in the middle of episodes, failing environments, evaluations."""

import pytest
import torch
from rl_cases import Corridor, Failing, FailingReset, make_agent

from vogn.errors import CheckpointError, StoppedError
from vogn.rl import (
    ACKTR,
    ACKTRSettings,
    EnvironmentFailure,
    Environments,
    InformationGain,
    PredictionError,
    RunResult,
    SpaceMismatchError,
    StateCoverage,
    evaluate_agent,
    progress_bar,
    run_agent,
)

DISCRETE = ("dqn", "noisy", "vogn", "kfac", "vadam mean", "acktr shared", "acktr separate")


def make(kind, count=1):
    return make_agent(kind, Environments(Corridor, count=count))


def weights(agent):
    return [p.detach().clone() for p in agent.network.parameters()]


def whole_and_resumed(build, environment, folder, steps=90, stop=41):
    """Results and weights of an unbroken run and of one that was stopped and went on."""

    def coverage():
        return StateCoverage([0.0], [1.0], bins=5, every=20)

    options = {"steps": steps, "seed": 3, "evaluate_every": 40, "evaluation_episodes": 2}
    whole = build()
    expected = run_agent(whole, environment, coverage=coverage(), **options)
    calls = iter(range(stop))
    with pytest.raises(StoppedError):
        run_agent(build(), environment, coverage=coverage(), folder=folder,
                  should_stop=lambda: next(calls, None) is None, **options)  # fmt: skip
    resumed = build()
    found = run_agent(resumed, environment, coverage=coverage(), folder=folder, **options)
    return (expected, weights(whole)), (found, weights(resumed))


@pytest.mark.parametrize(("kind", "count"), [*((kind, 1) for kind in DISCRETE), ("dqn", 3), ("vogn", 3)])
def test_a_killed_run_ends_with_the_same_weights(kind, count, tmp_path):
    (a, old), (b, new) = whole_and_resumed(lambda: make(kind, count), Corridor, tmp_path, stop=41 // count)
    assert a == b
    assert all(torch.equal(x, y) for x, y in zip(old, new, strict=True))
    assert len(a.evaluations) == 2 and a.episodes and a.coverage
    before = make(kind, count)
    assert any(not torch.equal(x, y) for x, y in zip(weights(before), old, strict=True))  # something was learnt


@pytest.mark.parametrize("kind", ["kfac", "error"])
def test_a_killed_run_with_a_bonus_ends_with_the_same_weights(kind, tmp_path):
    def real():
        return Corridor(True)

    def build():
        environments = Environments(real, count=2)
        common = {"hidden": (6,), "steps": 2, "batch_size": 8}
        bonus = (
            PredictionError(environments, **common)
            if kind == "error"
            else InformationGain(environments, method=kind, **common)
        )
        return ACKTR(environments, ACKTRSettings(hidden=(8,), rollout=5, shared=False), bonus=bonus)

    (a, old), (b, new) = whole_and_resumed(build, real, tmp_path, stop=22)
    assert a == b
    assert all(torch.equal(x, y) for x, y in zip(old, new, strict=True))


@pytest.mark.parametrize("what", ["nan", "raise"])
def test_after_a_failure_the_run_goes_on_as_if_nothing_had_happened(what, tmp_path):
    Failing.armed = False
    expected = run_agent(make("dqn", 2), lambda: Failing(25, what), steps=100)
    Failing.armed = True
    with pytest.raises(EnvironmentFailure):
        run_agent(make("dqn", 2), lambda: Failing(25, what), steps=100, folder=tmp_path)
    Failing.armed = False
    assert run_agent(make("dqn", 2), lambda: Failing(25, what), steps=100, folder=tmp_path) == expected


def test_after_a_reset_that_failed_the_run_goes_on_too(tmp_path):
    FailingReset.armed = False
    expected = run_agent(make("dqn", 2), FailingReset, steps=100)
    FailingReset.armed = True
    with pytest.raises(EnvironmentFailure, match=r"episode 2, step 0: reset\(\) raised OSError: no more worlds"):
        run_agent(make("dqn", 2), FailingReset, steps=100, folder=tmp_path)
    FailingReset.armed = False
    assert run_agent(make("dqn", 2), FailingReset, steps=100, folder=tmp_path) == expected


def test_periodic_checkpoints_survive_a_kill(tmp_path):
    class Killed(Exception):
        pass

    expected = run_agent(make("vogn"), Corridor, steps=80)

    def kill(step, result):
        if step > 50:
            raise Killed

    with pytest.raises(Killed):
        run_agent(make("vogn"), Corridor, steps=80, folder=tmp_path, checkpoint_every=7, watcher=kill)
    assert run_agent(make("vogn"), Corridor, steps=80, folder=tmp_path) == expected


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    run_agent(make("dqn"), Corridor, steps=20, folder=tmp_path)
    with pytest.raises(CheckpointError, match="it has agent DQN, this one NoisyDQN"):
        run_agent(make("noisy"), Corridor, steps=20, folder=tmp_path)
    environments = Environments(Corridor)
    settings = ACKTRSettings(hidden=(8,), rollout=5)
    curious = ACKTR(environments, settings, bonus=PredictionError(environments))
    run_agent(curious, Corridor, steps=9, folder=tmp_path / "b")
    with pytest.raises(CheckpointError, match="it has bonus"):
        other = ACKTR(environments, settings, bonus=PredictionError(environments, noise=0.2))
        run_agent(other, Corridor, steps=9, folder=tmp_path / "b")
    with pytest.raises(CheckpointError, match="it has run_seed 0, this one 1"):
        run_agent(make("dqn"), Corridor, steps=20, folder=tmp_path, seed=1)


def test_evaluation_is_a_plain_loop_over_episodes():
    from vogn.rl.randomness import derived_seed

    agent = make("dqn")
    found = evaluate_agent(agent, Corridor, episodes=3, seed=9)
    env, expected = Corridor(), []
    for episode in range(3):
        x, _ = env.reset(seed=derived_seed(9, 0, episode))
        total, done = 0.0, False
        while not done:
            action = int(agent.network(torch.from_numpy(x)[None]).argmax())
            x, reward, terminated, truncated, _ = env.step(action)
            total, done = total + reward, terminated or truncated
        expected.append(total)
    assert found == pytest.approx(expected)


def test_results_answer_questions():
    result = RunResult(episodes=[[10, -1.0, 10], [20, 0.7, 10], [30, 0.9, 10]])
    assert result.first_return_above(0.5) == 20 and result.first_return_above(1.0) is None
    assert result.mean_return(2) == pytest.approx(0.8)
    assert RunResult.from_dict(result.to_dict()) == result


def test_agents_refuse_other_spaces():
    with pytest.raises(SpaceMismatchError, match="discrete actions 2 against None"):
        run_agent(make("dqn"), lambda: Corridor(True), steps=10)
    with pytest.raises(SpaceMismatchError, match="needs discrete actions"):
        make_agent("dqn", Environments(lambda: Corridor(True)))
    with pytest.raises(ValueError, match="steps=0"):
        run_agent(make("dqn"), Corridor, steps=0)


def test_the_bar_is_told_about_every_episode(monkeypatch):
    from rich.progress import Progress

    seen = []
    monkeypatch.setattr(Progress, "update", lambda self, row, **fields: seen.append(fields))
    with progress_bar(90) as bar:
        result = run_agent(make("dqn"), Corridor, steps=90, seed=3, watcher=bar.episode_done)
    assert result.episodes and [fields["completed"] for fields in seen] == [int(step) for step, *_ in result.episodes]
    last = min(20, len(result.episodes))
    assert seen[-1]["state"] == f"return {result.mean_return(20):.1f} (last {last} episodes)"
