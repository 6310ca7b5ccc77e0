"""The loop: every method and acquisition, exact resume after a kill anywhere, labels that are never lost, bad input."""

import functools
import json

import numpy as np
import pytest
import torch
from active_cases import classification, learner, method, network, regression, regression_learner
from torch import nn

import vogn
from vogn.active import (
    ACQUISITIONS,
    ActiveLearner,
    ActiveResult,
    LabelError,
    NaturalGradientMethod,
    PoolError,
    PoolExhaustedError,
    Refit,
    StoppedError,
    progress_bar,
)
from vogn.active.natural_gradient import PRIOR_METHODS
from vogn.errors import CheckpointError, NonFiniteStatisticsError
from vogn.likelihoods import Bernoulli, Categorical, Gaussian


class Killed(BaseException):
    """Stands for a process that ends without a word."""


class KillAt:
    """Raises at the n-th event of a kind."""

    def __init__(self, kind, count):
        self.kind, self.count = kind, count

    def _event(self, kind):
        if kind == self.kind:
            self.count -= 1
            if self.count == 0:
                raise Killed

    def asked(self, wanted, given):
        self._event("asked")

    def step_done(self, done, total, loss):
        self._event("step")

    def round_done(self, row):
        self._event("round")


def weights(found):
    return torch.cat([p.detach().flatten() for p in found.model.parameters()])


@pytest.mark.parametrize("mode", ["variational", "deterministic"])
@pytest.mark.parametrize("name", sorted(vogn.METHODS))
def test_every_method_learns_in_both_modes(name, mode):
    if mode not in vogn.METHODS[name].modes:
        pytest.skip("does not run in this mode")
    found = learner(NaturalGradientMethod(name, variational=mode == "variational", steps=2, update_steps=1))
    result = found.run(2)
    assert result.labels == [4, 6] and len(set(found.numbers)) == 6
    assert all(np.isfinite(row["nll"]) for row in result.rows)


@pytest.mark.parametrize("name", sorted(ACQUISITIONS))
def test_every_acquisition_chooses_open_examples(name):
    kinds = ACQUISITIONS[name].kinds
    for kind, build, other in (("labels", learner, regression_learner), ("numbers", regression_learner, learner)):
        if kind not in kinds:
            with pytest.raises(ValueError, match="meant for"):
                build(acquisition=name)
            continue
        found = build(acquisition=name)
        found.run(3)
        assert len(set(found.numbers)) == 8
        torch.manual_seed(99)
        again = build(acquisition=name, chunk=3)  # in pieces: the same weight samples for all of them
        again.run(3)
        assert again.numbers == found.numbers
        del other


@pytest.mark.parametrize(
    ("update", "name"), [*(("prior", name) for name in PRIOR_METHODS), ("continue", "kfac"), ("retrain", "kfac")]
)
def test_every_kind_of_update_learns(update, name):
    if name == "slang":  # its posterior after so few steps is narrow by chance: chance is a third, 0.67 was measured
        build = functools.partial(method, name, update=update, steps=60, update_steps=30, lr=0.3)
        runs = [learner(build(), acquisition="random", seed=seed).run(3) for seed in range(4)]
        assert np.mean([run.curve("accuracy")[-1] for run in runs]) > 0.5
        return
    found = learner(method(name, update=update, steps=30, update_steps=10, lr=0.1), acquisition="random")
    result = found.run(3)
    assert result.curve("accuracy")[-1] > 0.6


def test_the_posterior_as_prior_is_sequential_bayes_for_a_linear_gaussian_model():
    x, y = regression(12)
    build = NaturalGradientMethod(
        "von", update="prior", variational=False, structure="dense", steps=60, update_steps=60, lr=1.0, momentum=0.0,
        curvature_decay=0.5, batch_size=100, damping=0.0,
    )  # fmt: skip
    found = ActiveLearner(
        lambda: nn.Linear(2, 1, bias=False).double(), build, x.double(), "random", likelihood=Gaussian(noise=0.3),
        oracle=lambda numbers, inputs: y[numbers].double(), initial=5, query_size=3,
    )  # fmt: skip
    found.run(3)
    seen = x[found.numbers].double()
    precision = seen.T @ seen / 0.3**2 + torch.eye(2, dtype=torch.float64)
    mean = torch.linalg.solve(precision, seen.T @ y[found.numbers].double() / 0.3**2)
    (tracked,) = found.posterior.precision_matrices().values()
    assert torch.allclose(tracked, precision, rtol=1e-6)
    assert torch.allclose(found.posterior.mean()["weight"], mean.T, atol=1e-8)


@pytest.mark.parametrize("update", ["prior", "continue", "retrain"])
@pytest.mark.parametrize(
    ("kind", "count"), [("asked", 2), ("asked", 5), ("step", 8), ("round", 2)]
)
def test_a_run_that_was_killed_ends_as_if_it_had_not_been(tmp_path, update, kind, count):
    whole = learner(method(update=update))
    expected = whole.run(3)
    with pytest.raises(Killed):
        learner(method(update=update), folder=tmp_path).run(3, watcher=KillAt(kind, count))
    torch.manual_seed(5)
    asked = []
    x, y = classification()

    def oracle(numbers, inputs):
        asked.extend(numbers.tolist())
        return y[numbers]

    paid = [json.loads(line)["index"] for line in (tmp_path / "labels.jsonl").read_text().splitlines()]
    again = learner(method(update=update), folder=tmp_path, oracle=oracle)
    assert again.run(3) == expected
    assert torch.equal(weights(again), weights(whole))
    assert not set(asked) & set(paid)  # nobody pays twice
    assert torch.equal(again.posterior.sample(1, seed=3)["0.weight"], whole.posterior.sample(1, seed=3)["0.weight"])


def test_labels_are_on_disk_one_by_one_even_without_a_state(tmp_path):
    x, y = classification()
    asked = []

    def slowly(numbers, inputs):
        for number in numbers.tolist():
            asked.append(number)
            if len(asked) == 3:
                raise Killed
            yield y[number]

    with pytest.raises(Killed):
        learner(oracle=slowly, folder=tmp_path).run(1)
    ledger = tmp_path / "labels.jsonl"
    assert [json.loads(line)["index"] for line in ledger.read_text().splitlines()] == asked[:2]
    (tmp_path / "state.pt").unlink()
    with ledger.open("a") as file:
        file.write('{"index": 12, "la')  # the machine stopped in the middle of a line
    found = learner(oracle=slowly, folder=tmp_path)
    found.run(1)
    assert asked[3:] == asked[2:3] + [n for n in found.numbers if n not in asked[:3]]
    entries = [json.loads(line) for line in ledger.read_text().splitlines()]
    assert all(entry["label"] == int(y[entry["index"]]) for entry in entries)


def test_by_hand_is_the_same_as_with_an_oracle():
    x, y = classification()
    expected = learner()
    expected.run(2)
    found = learner(oracle=None)
    with pytest.raises(ValueError, match="needs an oracle"):
        found.run(2)
    with pytest.raises(RuntimeError, match=r"query\(\) first"):
        found.update()
    with pytest.raises(RuntimeError, match="nothing has been learnt"):
        _ = found.posterior
    for _ in range(2):
        query = found.query()
        assert torch.equal(found.query(), query)  # the same until it is learnt from
        found.label(y[query[1:]], query[1:])  # some of them, in any order
        with pytest.raises(LabelError, match="1 of the examples"):
            found.update()
        found.label([y[query[0]]])
        found.update()
    assert found.result == expected.result and torch.equal(weights(found), weights(expected))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2], "3 labels for 4"),
        ([0, 1, 2, 0, 1], "more than the 4"),
        ([0, 1, 3, 0], "classes are 0 to 2"),
        ([0, 1, -1, 0], "classes are 0 to 2"),
        ([0, 1, 0.5, 0], "no class"),
        ([0, 1, float("nan"), 0], "finite"),
        ([0, 1, "cat", 0], "no number"),
        ([0, 1, [0, 1], 0], "2 numbers, 1 wanted"),
    ],
)
def test_a_wrong_label_ends_the_call_and_costs_nothing(tmp_path, labels, message):
    found = learner(oracle=lambda numbers, inputs: labels, folder=tmp_path)
    with pytest.raises(LabelError, match=message):
        found.run(1)
    right = [label for label in labels[:2]]
    assert [found.ledger[n] for n in found.query().tolist()[:2]] == right
    x, y = classification()
    found.oracle = lambda numbers, inputs: y[numbers]
    assert found.run(1).labels == [4]


def test_labels_are_given_once_and_only_where_asked():
    found = learner(oracle=None)
    query = found.query().tolist()
    found.label([1], [query[0]])
    with pytest.raises(LabelError, match="has a label already"):
        found.label([2], [query[0]])
    other = next(n for n in range(40) if n not in query)
    with pytest.raises(LabelError, match=f"example {other} was not asked for"):
        found.label([1], [other])
    with pytest.raises(LabelError, match="1 labels were given for 3"):
        found.label([1])


def test_the_pool_ends():
    found = learner(query_size=30)
    result = found.run(10)
    assert result.labels == [4, 34, 40] and result.exhausted
    assert sorted(found.numbers) == list(range(40))
    with pytest.raises(PoolExhaustedError, match="all 40"):
        found.query()
    with pytest.raises(PoolExhaustedError):
        found.select()


def test_nan_is_named_wherever_it_is():
    x, y = classification()
    x[7, 1] = float("nan")
    with pytest.raises(PoolError, match="number 7"):
        learner_of(x, y).run(20)
    with pytest.raises(PoolError, match="inputs of test"):
        learner(test=(x, y))
    with pytest.raises(PoolError, match="targets of labelled"):
        regression_learner(labelled=(torch.zeros(2, 2), torch.full((2, 1), float("nan"))))


def learner_of(x, y, **options):
    chosen = {"likelihood": Categorical(), "oracle": lambda n, _: y[n], "initial": [0, 1, 2], "query_size": 2}
    return ActiveLearner(network, method(), x, "entropy", **chosen | options)


def test_training_that_fails_leaves_everything_as_it_was():
    x, y = classification()
    found = learner(method(update="continue"))
    found.run(1)
    before, rows = weights(found).clone(), found.result
    x, y = classification()
    found.label(y[found.query()])
    with pytest.raises(StoppedError):
        found._stop = lambda: True
        found.update()
    assert torch.equal(weights(found), before) and found.result == rows
    found._stop = lambda: False
    found.update()
    whole = learner(method(update="continue"))
    whole.run(2)
    assert torch.equal(weights(found), weights(whole))
    with pytest.raises(NonFiniteStatisticsError):
        learner(method(lr=1e30)).run(1)


def test_stopping_between_labels_steps_and_pieces_can_go_on(tmp_path):
    expected = learner().run(3)
    for after in (1, 6, 12, 17):
        count = iter(range(after))
        found = learner(folder=tmp_path / str(after))
        with pytest.raises(StoppedError, match="stopped in round"):
            found.run(30, should_stop=lambda count=count: next(count, None) is None)
        assert learner(folder=tmp_path / str(after)).run(3).rows[:3] == expected.rows


def test_another_run_in_the_folder_is_refused(tmp_path):
    learner(folder=tmp_path).run(1)
    for options, message in (
        ({"seed": 1}, "its initial|its seed"),
        ({"query_size": 3}, "query_size is 2, here it is 3"),
        ({"acquisition": "entropy"}, "acquisition"),
        ({"posterior_method": method("kfac")}, "method"),
        ({"test": None}, "its test is another one"),
    ):
        with pytest.raises(CheckpointError, match=message):
            learner(folder=tmp_path, **options)
    for index, label, message in ((3, 7, "classes are 0 to 2"), (50, 1, "not in the pool")):
        (tmp_path / "labels.jsonl").write_text(json.dumps({"index": index, "label": label}) + "\n")
        with pytest.raises(CheckpointError, match=message):
            learner(folder=tmp_path)
    (tmp_path / "labels.jsonl").write_text("no label\n")
    with pytest.raises(CheckpointError, match="line 1 is no label"):
        learner(folder=tmp_path)


def laplace(model, likelihood, x, y):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(20):
        optimizer.zero_grad()
        likelihood(model(x), y).backward()
        optimizer.step()
    return vogn.laplace(model, likelihood, [(x, y)], prior_precision=1.0)


@pytest.mark.parametrize("warm", [False, True])
def test_any_function_that_makes_a_posterior_will_do(tmp_path, warm):
    options = {"prediction": {"method": "linearized"}, "acquisition": "bald"}
    whole = learner(Refit(laplace, warm=warm), **options)
    expected = whole.run(3)
    with pytest.raises(Killed):
        learner(Refit(laplace, warm=warm), folder=tmp_path, **options).run(3, watcher=KillAt("round", 2))
    again = learner(Refit(laplace, warm=warm), folder=tmp_path, **options)
    assert again.run(3) == expected and torch.equal(weights(again), weights(whole))
    assert learner(laplace, **options).run(1) == ActiveResult(expected.rows[:1])


class NoFile:
    """A posterior without a file format."""

    def __init__(self, model):
        self.point = vogn.Point(model)

    def __getattr__(self, name):
        return getattr(self.point, name)


def test_a_posterior_that_cannot_be_stored_needs_no_folder(tmp_path):
    fit = Refit(lambda model, likelihood, x, y: NoFile(model), name="point")
    assert learner(fit).run(2).labels == [4, 6]
    with pytest.raises(TypeError, match="NoFile cannot be written"):
        learner(fit, folder=tmp_path).run(1)


def test_labelled_examples_besides_the_pool_and_targets_for_epig():
    x, y = classification(20, seed=3)
    found = learner(acquisition="epig", labelled=(x[:10], y[:10]), targets=x[10:], initial=0)
    result = found.run(3)
    assert result.labels == [10, 12, 14] and result.rows[0]["queried"] == []


def test_binary_labels_and_a_learnable_noise(tmp_path):
    x, y = classification()
    binary = (y == 0).float().unsqueeze(1)
    for name in ("bald", "batchbald", "epig", "margin", "entropy", "variation_ratio", "mean_deviation"):
        found = ActiveLearner(
            lambda: network(1), method(), x, name, likelihood=Bernoulli(), oracle=lambda n, _: binary[n], initial=4,
            query_size=2, samples=4, test=(x, binary),
        )  # fmt: skip
        assert found.run(2).curve("accuracy")[-1] > 0.2
    noisy = Gaussian(noise="learn")
    found = regression_learner(likelihood=noisy, folder=tmp_path)
    found.run(2)
    other = Gaussian(noise="learn")
    regression_learner(likelihood=other, folder=tmp_path)
    assert torch.equal(other.noise, noisy.noise) and abs(noisy.noise.item() - 0.1) > 1e-6


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"query_size": 0}, ValueError, "query_size=0"),
        ({"samples": 0}, ValueError, "samples=0"),
        ({"chunk": 0}, ValueError, "chunk=0"),
        ({"seed": -1}, ValueError, "seed=-1"),
        ({"prediction": {"samples": 3, "method": "mc"}}, ValueError, "prediction holds samples"),
        ({"initial": 0}, ValueError, "at least one example"),
        ({"initial": -1}, ValueError, "initial must be"),
        ({"initial": [1, 1]}, ValueError, "different numbers"),
        ({"initial": [40]}, ValueError, "from 0 to 39"),
        ({"acquisition": "bold"}, ValueError, "unknown"),
        ({"test": (torch.zeros(0, 2), torch.zeros(0))}, PoolError, "test holds 0"),
    ],
)
def test_what_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        learner(**options)


def test_what_else_is_refused():
    with pytest.raises(PoolError, match="empty"):
        learner_of(torch.zeros(0, 2), torch.zeros(0))
    with pytest.raises(TypeError, match="a pool is"):
        learner_of(3, torch.zeros(0))
    with pytest.raises(ValueError, match="rounds=0"):
        learner().run(0)
    for options, message in (
        ({"method": "adam"}, "unknown"),
        ({"update": "never"}, "unknown"),
        ({"method": "ekfac", "update": "prior"}, "update='continue'"),
        ({"steps": 0}, "steps=0"),
        ({"temperature": 0.0}, "temperature"),
        ({"weight_decay": 0.1}, "set prior_precision instead"),
        ({"ess": 10.0}, "set temperature instead"),
    ):
        with pytest.raises(ValueError, match=message):
            NaturalGradientMethod(**options)
    for answer in (None, 3, torch.tensor(1)):
        with pytest.raises(LabelError, match="one label for each"):
            learner(oracle=lambda numbers, inputs, answer=answer: answer).run(1)


def test_a_progress_bar_follows(capsys):
    with progress_bar(2) as watcher:
        learner().run(2, watcher=watcher)
    result = learner(oracle=None, test=None)
    assert result.result.metrics == [] and result.result.labels == []


def test_labels_needed():
    values = enumerate((0.5, 0.9))
    rows = [{"round": k, "labels": 10 * k, "queried": [], "accuracy": a, "rmse": 1 - a} for k, a in values]
    result = ActiveResult(rows)
    assert result.labels_needed("accuracy", 0.9) == 10 and result.labels_needed("accuracy", 0.95) is None
    assert result.labels_needed("rmse", 0.5) == 0 and result.labels_needed("rmse", 0.2) == 10
    assert ActiveResult.from_dict(json.loads(json.dumps(result.to_dict()))) == result
    with pytest.raises(KeyError, match="not measured"):
        result.curve("brier")
