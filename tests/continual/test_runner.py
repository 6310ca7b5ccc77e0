"""A run over tasks: every method, exact resume after a kill, and what is refused."""

import pytest
import torch
from continual_cases import classification, network
from torch import nn

import vogn
from vogn.continual import CONTINUAL_METHODS, StoppedError, VariationalContinualLearning, adam, online_ewc, run_tasks
from vogn.continual.runner import accuracy
from vogn.continual.variational import HANDOVER
from vogn.continual.watching import progress_bar
from vogn.data import DataError
from vogn.errors import CheckpointError, NonFiniteStatisticsError
from vogn.likelihoods import Categorical

NAMES = sorted(CONTINUAL_METHODS)


class Killed(Exception):
    """Stands for a process that ends without a word."""


class KillAfter:
    """Raises after so many batches, or after so many tasks."""

    def __init__(self, batches=10**9, tasks=10**9):
        self.batches, self.tasks = batches, tasks

    def batch_done(self, number, task, done, total, loss):
        self.batches -= 1
        if self.batches == 0:
            raise Killed

    def task_done(self, number, task, accuracies):
        self.tasks -= 1
        if self.tasks == 0:
            raise Killed


def build(name, heads=1):
    options = {"samples": 2, "lr": 0.02} if name.startswith("vcl") else {"optimizer": adam(0.02)}
    if name in ("replay", "l2", "fromp", "kpriors"):
        options["memory"] = 6
    return CONTINUAL_METHODS[name].build(network(heads), Categorical(), **options)


def run(method, heads=1, **options):
    return run_tasks(method, classification(heads, tasks=3), **{"epochs": 2, "batch_size": 12} | options)


def weights(method):
    return [p.detach().clone() for p in method.model.parameters()]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_every_method_runs_with_one_head_and_with_several(name, heads):
    method = build(name, heads)
    before = weights(method)
    result = run(method, heads)
    assert [len(row) for row in result.matrix] == [3, 3, 3]
    assert all(0 <= value <= 1 for row in result.matrix for value in row)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(method), strict=True))
    if CONTINUAL_METHODS[name].penalised and name != "finetune":
        with torch.no_grad():
            for p in method.model.parameters():
                p.add_(0.3)
        slopes = torch.autograd.grad(method.penalty(), list(method.model.parameters()), allow_unused=True)
        assert any(slope is not None and bool(slope.any()) for slope in slopes)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_layers_stay(name):
    method = build(name)
    with torch.no_grad():
        frozen = method.model[0].weight.clone()
    method.model[0].requires_grad_(False)
    options = {"samples": 2, "lr": 0.02} if name.startswith("vcl") else {}
    method = CONTINUAL_METHODS[name].build(method.model, Categorical(), **options)
    run(method)
    assert torch.equal(method.model[0].weight, frozen) and not method.model[0].weight.requires_grad


KILLS = [{"batches": 8}, {"tasks": 2}]
EARLY = [{"batches": 2}, {"batches": 3}, {"tasks": 1}, {"tasks": 3}]


@pytest.mark.parametrize(
    ("name", "kill"), [(name, kill) for name in NAMES for kill in KILLS] + [("vcl", kill) for kill in EARLY], ids=str
)
def test_a_killed_run_ends_with_the_same_bits(name, kill, tmp_path):
    """Within a task (before, at and after a checkpoint), and while a task is being finished."""
    whole = build(name, 3)
    wanted = run(whole, 3)
    with pytest.raises(Killed):
        run(build(name, 3), 3, folder=tmp_path, checkpoint_every=3, watcher=KillAfter(**kill))
    again = build(name, 3)
    found = run(again, 3, folder=tmp_path, checkpoint_every=3)
    assert found == wanted
    for a, b in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(a, b)
    assert run(build(name, 3), 3, folder=tmp_path) == wanted  # a finished run is read


@pytest.mark.parametrize("method", HANDOVER)
def test_every_method_with_a_posterior_learns_tasks(method, tmp_path):
    """Killed within the second task, it ends with the same bits; a strength changes them."""

    def learner(strength=1.0):
        return VariationalContinualLearning(
            network(), Categorical(), method=method, lr=0.02, samples=2, strength=strength
        )

    whole, again, firmer = learner(), learner(), learner(5.0)
    wanted = run(whole)
    with pytest.raises(Killed):
        run(learner(), folder=tmp_path, checkpoint_every=3, watcher=KillAfter(batches=8))
    assert run(again, folder=tmp_path, checkpoint_every=3) == wanted
    run(firmer)
    for a, b in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(weights(whole)[0], weights(firmer)[0])


@pytest.mark.parametrize("method", ["vadam", "smw", "adam"])
def test_methods_without_a_posterior_to_hand_over_are_refused_at_once(method):
    with pytest.raises(ValueError, match=f"method='{method}' is unknown; choose vogn, von"):
        VariationalContinualLearning(network(), Categorical(), method=method)


def test_dropout_goes_on_with_the_same_noise_and_the_global_state_is_left_alone(tmp_path):
    def model():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 3)).double()

    def ewc():
        return online_ewc(model(), Categorical(), optimizer=adam(0.02))

    whole = ewc()
    state = torch.get_rng_state()
    wanted = run(whole)
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(Killed):
        run(ewc(), folder=tmp_path, checkpoint_every=2, watcher=KillAfter(batches=9))
    again = ewc()
    torch.rand(5)
    assert run(again, folder=tmp_path, checkpoint_every=2) == wanted
    for a, b in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(a, b)
    assert again.model.training


@pytest.mark.parametrize("name", ["ewc", "vcl", "fromp"])
def test_frozen_batch_norm_keeps_the_statistics_of_the_first_task(name, tmp_path):
    """The same after task 1 as without freezing, then unchanged; and a killed run still ends with the same bits."""

    def learner():
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
        options = {"samples": 0, "lr": 0.02} if name == "vcl" else {"optimizer": adam(0.02)}
        return CONTINUAL_METHODS[name].build(model, Categorical(), **options)

    def statistics(tasks, **options):
        method = learner()
        run_tasks(method, classification(tasks=tasks), epochs=2, batch_size=12, **options)
        return [method.model[1].running_mean.clone(), method.model[1].running_var.clone()]

    first, frozen, running = statistics(1), statistics(2, batchnorm="freeze"), statistics(2)
    assert all(torch.equal(a, b) for a, b in zip(first, frozen, strict=True))
    assert not torch.equal(first[0], running[0])
    options = {"batchnorm": "freeze", "folder": tmp_path, "checkpoint_every": 1}
    with pytest.raises(Killed):
        run(learner(), watcher=KillAfter(batches=6), **options)
    again, whole = learner(), learner()
    assert run(again, **options) == run(whole, batchnorm="freeze")
    for a, b in zip(weights(whole), weights(again), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(CheckpointError, match="batchnorm freeze, this one running"):
        run(learner(), folder=tmp_path)


def test_a_run_that_is_asked_to_stop_has_written_where_it_stood(tmp_path):
    wanted = run(build("ewc"))
    asked = iter([False] * 5 + [True])
    with pytest.raises(StoppedError, match="task 2 of 3, batch 1"):
        run(build("ewc"), folder=tmp_path, checkpoint_every=1000, should_stop=lambda: next(asked))
    assert run(build("ewc"), folder=tmp_path) == wanted


def test_accuracy_is_the_share_of_right_labels():
    method, task = build("finetune"), classification()[0]
    right = [int(method.model(x[None]).argmax()) == int(y) for x, y in zip(task.x_test, task.y_test, strict=True)]
    assert accuracy(method, task) == sum(right) / 12
    result = run(method)
    assert result.matrix[-1] == [accuracy(method, task) for task in classification(tasks=3)]


def test_folders_of_another_run_and_damaged_ones(tmp_path):
    run(build("ewc"), folder=tmp_path)
    for options, match in (
        ({"epochs": 3}, "epochs 2, this one 3"),
        ({"seed": 1}, "seed 0, this one 1"),
    ):
        with pytest.raises(CheckpointError, match=match):
            run(build("ewc"), folder=tmp_path, **options)
    with pytest.raises(CheckpointError, match="strength"):
        run(online_ewc(network(), Categorical(), strength=2.0), folder=tmp_path)
    with pytest.raises(CheckpointError, match="lr=0.02.*lr=0.05"):
        run(online_ewc(network(), Categorical(), optimizer=adam(0.05)), folder=tmp_path)
    with pytest.raises(CheckpointError, match="its tasks are others"):
        run_tasks(build("ewc"), classification(tasks=4), epochs=2, batch_size=12, folder=tmp_path)
    with pytest.raises(CheckpointError, match="has method OnlineLaplace, this one Replay"):
        run(build("replay"), folder=tmp_path)
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
        run(build("ewc"), folder=tmp_path)


def test_what_is_refused():
    for options, match in (
        ({"epochs": 0}, "epochs=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"checkpoint_every": 0}, "checkpoint_every=0"),
        ({"batchnorm": "x"}, "batchnorm='x'"),
    ):
        with pytest.raises(ValueError, match=match):
            run(build("ewc"), **options)
    narrow = online_ewc(nn.Linear(4, 2).double(), Categorical())
    with pytest.raises(DataError, match="task 'task 0' has 3 classes, but head 0 of the model has 2 outputs"):
        run(narrow)
    with pytest.raises(ValueError, match="asks for head 1"):
        run_tasks(build("ewc"), classification(heads=3, tasks=3))
    with pytest.raises(DataError, match="no tasks"):
        run_tasks(build("ewc"), [])


def test_a_diverged_run_says_so():
    method = online_ewc(
        network(), Categorical(), optimizer=lambda m, n: torch.optim.SGD(m.parameters(), lr=float("inf"))
    )
    with pytest.raises(NonFiniteStatisticsError, match="training diverged: the loss is nan"):
        run(method)


def test_the_bar_is_told_about_every_batch_and_task(monkeypatch):
    from rich.progress import Progress

    seen = []
    monkeypatch.setattr(Progress, "update", lambda self, row, **fields: seen.append(fields))
    with progress_bar(3) as watcher:
        result = run(build("finetune"), watcher=watcher)
    assert [f["completed"] for f in seen if "completed" in f] == [1, 2, 3, 4] * 3
    assert [f["accuracy"] for f in seen if "accuracy" in f] == pytest.approx(result.averages)


VARIATIONAL = [(method, True) for method in ("vogn", "von", "ivon", "kfac", "slang")]
DETERMINISTIC = [(method, False) for method in ("vogn", "von", "kfac", "slang")]


@pytest.mark.parametrize(("method", "variational"), VARIATIONAL + DETERMINISTIC)
def test_the_posterior_grows_with_every_task_in_both_modes(method, variational):
    """IVON learns from weight noise alone."""
    options = {"initial_curvature": 0.1} if method == "ivon" else {}
    learner = VariationalContinualLearning(
        network(), Categorical(), method=method, lr=0.02, samples=2, variational=variational, **options
    )
    entropies = []

    class Watch(KillAfter):
        def task_done(self, number, task, accuracies):
            entropies.append(float(learner.posterior.entropy()))

    run(learner, watcher=Watch())
    assert entropies[0] > entropies[1] > entropies[2]
    assert float(learner.penalty()) == 0.0
    total = sum(block.ess * block.shift for block in learner.posterior.blocks) / len(learner.posterior.blocks)
    assert total == pytest.approx(1.0)  # the first prior's precision is still there, once


def test_variational_predictions_average_over_the_posterior():
    learner = VariationalContinualLearning(network(), Categorical(), lr=0.02, samples=5)
    x = classification()[0].x_test
    assert torch.equal(learner.outputs(x), learner.model(x).detach())
    run(learner)
    wanted = vogn.predict(learner.model, learner.posterior, x, samples=5).mean
    torch.testing.assert_close(learner.outputs(x), wanted)
    learner.samples = 0
    torch.testing.assert_close(learner.outputs(x), learner.model.eval()(x).detach())


def test_the_optimizer_has_the_temperature_and_the_prior_once():
    """``ess = N / T`` and a prior of the given precision, in later tasks too, whatever their size."""
    learner = VariationalContinualLearning(network(), Categorical(), lr=0.02, prior_precision=3.0, temperature=0.5)
    for examples in (24, 6):
        task = classification()[0]
        learner.begin_task(examples)
        optimizer = learner.optimizer()
        group = optimizer.param_groups[0]
        assert group["ess"] == 2 * examples and group["ess"] * group["weight_decay"] == pytest.approx(3.0)
        vogn.continual.train_step(learner, optimizer, task.x_train[:examples], task.y_train[:examples])
        learner.after_task([])


def test_variational_ranges_and_order_of_calls():
    for options, match in (
        ({"method": "sgd"}, "method='sgd'"),
        ({"prior_precision": 0.0}, "prior_precision=0"),
        ({"temperature": -1.0}, "temperature=-1"),
        ({"samples": -1}, "samples=-1"),
    ):
        with pytest.raises(ValueError, match=match):
            VariationalContinualLearning(network(), Categorical(), **options)
    with pytest.raises(RuntimeError, match="no posterior"):
        VariationalContinualLearning(network(), Categorical()).after_task([])


def test_a_penalty_goes_with_an_optimizer_of_this_library():
    """Deterministic VOGN of one step: its gradient is that of ``loss + penalty / N``, by autograd."""
    task = classification()[0]
    method = online_ewc(
        network(), Categorical(),
        optimizer=lambda m, n: vogn.VOGN(m, lr=0.1, ess=n, weight_decay=0.0, damping=0.3, momentum=0.0,
                                         variational=False),
    )  # fmt: skip
    method.after_task([(task.x_train, task.y_train)])
    with torch.no_grad():
        for p in method.model.parameters():
            p.add_(0.2)
    method.begin_task(24)
    objective = Categorical()(method.model(task.x_train), task.y_train) + method.penalty() / 24
    names = [n for n, _ in method.model.named_parameters()]
    slopes = dict(zip(names, torch.autograd.grad(objective, list(method.model.parameters())), strict=True))
    before = method.copy_of_weights()
    optimizer = method.optimizer()
    vogn.continual.train_step(method, optimizer, task.x_train, task.y_train)
    for block in optimizer.posterior().blocks:
        curvature = block.layout.unpack(block.state["c"])
        for n in block.layout.names:
            wanted = before[n] - 0.1 * slopes[n] / (curvature[n] + 0.3)
            torch.testing.assert_close(dict(method.model.named_parameters())[n].detach(), wanted)
