"""Problems, neural agents, and runs that are killed."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from vogn.errors import CheckpointError, StoppedError
from vogn.models import mlp
from vogn.rl import (
    BANDIT_AGENTS,
    BANDITS,
    BanditProblem,
    EnsembleThompson,
    LastLayerThompson,
    LinearThompson,
    NeuralThompson,
    UniformBandit,
    breast_cancer_bandit,
    classification_bandit,
    digits_bandit,
    make_bandit_agent,
    progress_bar,
    run_bandit,
    wheel_bandit,
)


def test_wheel_is_as_defined():
    problem = wheel_bandit(4000, 0.6, seed=3)
    radius = np.linalg.norm(problem.contexts, axis=1)
    assert radius.max() <= 1
    np.testing.assert_allclose(np.mean(radius <= 0.6), 0.36, atol=3 * (0.36 * 0.64 / 4000) ** 0.5)
    for row, (x, y), r in zip(problem.expected, problem.contexts, radius, strict=True):
        wanted = [1.2, 1.0, 1.0, 1.0, 1.0]
        if r > 0.6:
            wanted[{(True, True): 1, (True, False): 2, (False, True): 3, (False, False): 4}[(x >= 0, y >= 0)]] = 50.0
        assert row.tolist() == wanted
    noise = problem.rewards - problem.expected
    assert abs(noise.std() - 0.01) < 2e-4
    assert problem.regret(np.zeros(4000, dtype=np.int64))[radius > 0.6] == pytest.approx(48.8)


def test_classification_pays_for_the_right_label_once_a_pass():
    x, y = load_digits(return_X_y=True)
    problem = digits_bandit(len(y) + 5, seed=2)
    assert problem.arms == 10 and problem.features == 64
    assert problem.rewards.sum(1).tolist() == [1.0] * problem.rounds
    assert np.bincount(problem.rewards[: len(y)].argmax(1)).tolist() == np.bincount(y).tolist()
    np.testing.assert_allclose(problem.contexts[: len(y)].std(0)[x.std(0) > 0], 1.0)
    assert breast_cancer_bandit(10).arms == 2


def test_best_possible_arms_have_no_regret():
    problem = wheel_bandit(50)
    assert problem.regret(problem.expected.argmax(1)).max() == 0


def test_bad_problems_are_refused():
    with pytest.raises(ValueError, match="rewards of round 1 are not finite"):
        BanditProblem("p", np.zeros((2, 1)), np.zeros((2, 2)), np.array([[0, 0], [0, np.nan]]))
    with pytest.raises(ValueError, match="same rounds and arms"):
        BanditProblem("p", np.zeros((2, 1)), np.zeros((3, 2)), np.zeros((3, 2)))
    with pytest.raises(ValueError, match="delta=1"):
        wheel_bandit(10, 1.0)
    with pytest.raises(ValueError, match="one class"):
        classification_bandit(np.zeros((3, 2)), [1, 1, 1])
    with pytest.raises(ValueError, match="rounds=0"):
        wheel_bandit(0)
    with pytest.raises(ValueError, match="unknown agent 'frog'"):
        make_bandit_agent("frog", wheel_bandit(5))


SMALL = {"hidden": (8,), "update_every": 6, "steps": 2, "batch_size": 8, "initial_pulls": 1}


def small_agent(name, problem, **more):
    options = {} if name in ("uniform", "linear") else SMALL
    return make_bandit_agent(name, problem, seed=5, **options | more)


@pytest.mark.parametrize("name", [name for name in BANDIT_AGENTS if name not in ("greedy", "ekfac", "slang")])
def test_a_killed_run_ends_with_the_same_choices(name, tmp_path):
    problem = breast_cancer_bandit(40, seed=1)
    whole = run_bandit(small_agent(name, problem), problem)
    left = iter(range(23))
    with pytest.raises(StoppedError, match="round 24 of 40"):
        run_bandit(
            small_agent(name, problem), problem, folder=tmp_path, should_stop=lambda: next(left, None) is None
        )
    resumed = run_bandit(small_agent(name, problem), problem, folder=tmp_path)
    assert resumed == whole
    assert resumed == run_bandit(small_agent(name, problem), problem, folder=tmp_path)  # it is over


def test_a_checkpoint_of_another_agent_is_refused(tmp_path):
    problem = breast_cancer_bandit(20)
    run_bandit(small_agent("vogn", problem), problem, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"it has temperature 0\.1, this one 0\.5"):
        run_bandit(small_agent("vogn", problem, temperature=0.5), problem, folder=tmp_path)
    with pytest.raises(CheckpointError, match="damaged"):
        (tmp_path / "checkpoint.pt").write_bytes(b"no")
        run_bandit(small_agent("vogn", problem), problem, folder=tmp_path)


@pytest.mark.parametrize("name", ["last-layer", "vogn"])
def test_networks_learn_what_chance_does_not(name):
    problem = breast_cancer_bandit(200, seed=0)
    agent = make_bandit_agent(name, problem, seed=0, hidden=(20,))
    chance = run_bandit(UniformBandit(30, 2), problem).metrics["cumulative_regret"]
    assert run_bandit(agent, problem).metrics["cumulative_regret"] < 0.6 * chance


def test_posterior_of_a_linear_network_is_the_exact_one():
    """One linear layer, dense Gauss-Newton curvature: after enough steps the precision is that of LinearThompson."""
    problem = wheel_bandit(60, seed=4)
    options = {"structure": "dense", "curvature_decay": 0.9, "lr": 0.1, "damping": 0.0}
    agent = NeuralThompson(
        mlp((2, 5)), 2, 5, method="vogn", options=options, prior_precision=2.0, temperature=1.0, noise=0.3,
        reward_scale=10.0, update_every=1, steps=1, batch_size=60,
    )  # fmt: skip
    exact = make_bandit_agent("linear", problem, noise=0.3, prior_precision=2.0)
    for t in range(60):
        agent.observe(problem.contexts[t], t % 5, float(problem.rewards[t, t % 5]))
        exact.observe(problem.contexts[t], t % 5, float(problem.rewards[t, t % 5]) / 10)
    agent.batch = lambda: (agent.history()[0], *(tensor.unsqueeze(1) for tensor in agent.history()[1:]))
    agent.steps = 150
    agent.fit()
    (matrix,) = agent.posterior().precision_matrices().values()
    found = matrix.reshape(5, 3, 5, 3)  # outputs, inputs and the bias
    for arm in range(5):
        torch.testing.assert_close(found[arm, :, arm].double(), exact.precision[arm], rtol=1e-4, atol=1e-3)


def test_one_draw_serves_all_decisions_between_updates():
    problem = breast_cancer_bandit(30)
    agent = small_agent("vogn", problem, resample="update", update_every=100)
    for t in range(8):
        agent.observe(problem.contexts[t], t % 2, 1.0)
    agent.fit()
    agent.choose(problem.contexts[9])
    kept = agent._weights
    agent.choose(problem.contexts[10])
    assert agent._weights is kept
    every = small_agent("vogn", problem)
    for t in range(8):
        every.observe(problem.contexts[t], t % 2, 1.0)
    every.fit()
    every.choose(problem.contexts[9])
    first = every._weights
    every.choose(problem.contexts[10])
    assert any(not torch.equal(first[name], every._weights[name]) for name in first)


def test_last_layer_is_linear_thompson_on_the_features():
    torch.manual_seed(1)
    agent = LastLayerThompson(mlp((3, 6, 2)), 3, 2, noise=0.5, prior_precision=3.0, update_every=100, batch_size=4)
    generator = np.random.default_rng(0)
    x, rewards = generator.normal(size=(12, 3)), generator.normal(size=12)
    for t in range(12):
        agent.observe(x[t], t % 2, rewards[t])
    agent.fit()
    exact = LinearThompson(6, 2, noise=0.5, prior_precision=3.0)
    with torch.no_grad():
        features = agent.body(torch.from_numpy(x).float()).double().numpy()
    for t in range(12):
        exact.observe(features[t], t % 2, float(np.float32(rewards[t])))
    torch.testing.assert_close(agent.head.precision, exact.precision, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(agent.head.mean(), exact.mean(), rtol=1e-5, atol=1e-6)


def test_members_see_poisson_counts_that_do_not_change_as_rounds_are_added():
    agent = EnsembleThompson([mlp((2, 2)), mlp((2, 2))], 2, 2)
    agent.rounds = 5000
    counts = agent._counts(0)
    assert float(counts.mean()) == pytest.approx(1.0, abs=4 / 5000**0.5)
    assert float(counts.var()) == pytest.approx(1.0, abs=0.1)
    agent.rounds = 7
    assert agent._counts(0).tolist() == counts[:7].tolist()
    agent.rounds = 37
    assert agent._counts(0).tolist() == counts[:37].tolist()
    assert agent._counts(1).tolist() != counts[:37].tolist()


def test_every_bandit_can_be_made():
    for info in BANDITS.values():
        assert info.make(7, seed=1).rounds == 7


def test_every_agent_can_be_made():
    problem = wheel_bandit(3)
    for name in BANDIT_AGENTS:
        assert run_bandit(make_bandit_agent(name, problem, **({} if name == "uniform" else {"noise": 0.2})), problem)


def test_the_bar_is_told_about_every_round_and_its_regret(monkeypatch):
    from rich.progress import Progress

    seen = []
    monkeypatch.setattr(Progress, "update", lambda self, row, **fields: seen.append(fields))
    problem = wheel_bandit(30, seed=0)
    with progress_bar(30) as bar:
        result = run_bandit(UniformBandit(problem.features, problem.arms, seed=0), problem, watcher=bar.round_done)
    assert [fields["completed"] for fields in seen] == list(range(1, 31))
    assert [fields["state"] for fields in seen] == [f"regret {value:.1f}" for value in result.cumulative_regret]
