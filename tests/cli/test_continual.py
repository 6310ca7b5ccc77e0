"""`vogn continual` end to end on a tiny data set."""

import json
import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest
import torch

TINY = ["--epochs", "2", "--hidden", "6,5", "--batch-size", "20"]


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def test_methods_side_by_side_with_plots_and_json(vogn, tiny, tmp_path):
    options = ["--data", tiny, "--tasks", "2", "--method", "finetune,VCL,kronecker", *TINY]
    outcome = vogn("continual", "--benchmark", "permuted-digits", *options, "--output", "run")
    assert outcome.code == 0, outcome.err
    found = results(tmp_path / "run")
    assert list(found) == ["finetune", "vcl", "kronecker"]
    for name, result in found.items():
        matrix = np.array(result["matrix"])
        assert matrix.shape == (2, 2) and result["average_accuracy"] == pytest.approx(matrix[-1].mean())
        assert f"{name}: average accuracy {matrix[-1].mean():.4f}" in outcome.out
        picture = tmp_path / "run" / f"accuracy_matrix_{name}.png"
        assert picture.read_bytes().startswith(b"\x89PNG\r\n")
    assert (tmp_path / "run" / "average_accuracy.png").read_bytes().startswith(b"\x89PNG\r\n")
    again = vogn("continual", "--resume", "run")  # a finished run prints its table again
    assert again.code == 0 and results(tmp_path / "run") == found


@pytest.mark.parametrize("scenario", ["task", "domain", "class"])
def test_split_classes_in_every_scenario(vogn, tiny, tmp_path, scenario):
    x = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    np.savez(tmp_path / "four.npz", x_train=x, y_train=np.arange(60) % 4, x_test=x, y_test=np.arange(60) % 4)
    options = ["--data", f"npz:{tmp_path / 'four.npz'}", "--scenario", scenario, "--method", "ewc,fromp", *TINY]
    outcome = vogn("continual", "--benchmark", "split-digits", *options, "--strength", "2", "--output", "run")
    assert outcome.code == 0, outcome.err
    assert results(tmp_path / "run")["ewc"]["tasks"] == ["classes 0, 1", "classes 2, 3"]
    saved = torch.load(tmp_path / "run" / "ewc" / "checkpoint.pt", weights_only=True)
    last = list(saved["model"].values())[-1]
    assert len(last) == (4 if scenario == "class" else 2)
    assert ("heads.1.bias" in saved["model"]) == (scenario == "task")


@pytest.fixture
def grey(tmp_path):
    """Twelve digits of every class as 8-bit images, the last two for tests."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    chosen = np.concatenate([np.flatnonzero(digits.target == k)[:12] for k in range(10)])  # in the order of the classes
    x, y, tested = (16 * digits.images[chosen]).astype(np.uint8), digits.target[chosen], np.arange(120) % 12 >= 10
    np.savez(tmp_path / "grey.npz", x_train=x[~tested], y_train=y[~tested], x_test=x[tested], y_test=y[tested])
    return f"npz:{tmp_path / 'grey.npz'}"


@pytest.mark.parametrize(("benchmark", "count"), [("permuted-mnist", 10), ("split-mnist", 5)])
def test_images_of_a_file_are_flat_for_a_perceptron(vogn, grey, tmp_path, benchmark, count):
    options = ["--data", grey, "--examples", "80", "--method", "kpriors", "--hidden", "6", "--epochs", "1"]
    outcome = vogn("continual", "--benchmark", benchmark, *options, "--output", "run")
    assert outcome.code == 0, outcome.err
    assert len(results(tmp_path / "run")["kpriors"]["tasks"]) == count
    assert json.loads((tmp_path / "run" / "config.json").read_text())["continual"]["batch_size"] == 128
    saved = torch.load(tmp_path / "run" / "kpriors" / "checkpoint.pt", weights_only=True)
    assert saved["model"]["1.weight"].shape == (6, 64)


@pytest.mark.parametrize(("benchmark", "strength"), [("permuted-digits", 100.0), ("permuted-mnist", 10.0)])
def test_recipes_of_digits_and_of_images(benchmark, strength):
    from vogn.cli.continual import ContinualSettings, method_of, tasks_of

    settings = ContinualSettings(benchmark=benchmark, data="digits", tasks=2, hidden=(5,))
    tasks = tasks_of(settings)
    assert method_of(settings, "ewc", tasks).strength == strength
    assert method_of(ContinualSettings(**{**vars(settings), "strength": 7.0}), "vcl", tasks).strength == 7.0
    assert method_of(settings, "vcl", tasks).prior_precision == (10.0 if "digits" in benchmark else 100.0)


@pytest.mark.parametrize("norm", ["frn", "group", "batch"])
def test_convolutions_with_a_head_for_each_task(vogn, grey, tmp_path, norm):
    options = ["--data", grey, "--method", "ewc", "--epochs", "1", "--norm", norm]
    options += ["--batchnorm", "freeze"] if norm == "batch" else []
    outcome = vogn("continual", "--benchmark", "split-cifar10", *options, "--output", "run")
    assert outcome.code == 0, outcome.err
    saved = torch.load(tmp_path / "run" / "ewc" / "checkpoint.pt", weights_only=True)["model"]
    assert saved["heads.4.weight"].shape == (2, 64) and saved["body.0.weight"].shape == (16, 1, 3, 3)
    assert any("running_mean" in name for name in saved) == (norm == "batch")


def test_a_signal_ends_the_run_with_the_way_to_continue_it(vogn, tiny, tmp_path, monkeypatch):
    import vogn.cli.continual as module

    options = ["continual", "--data", tiny, "--tasks", "2", "--method", "finetune,vcl-kfac", *TINY]
    assert vogn(*options, "--output", "whole").code == 0

    @contextmanager
    def deadly(tasks, label):
        class Watcher:
            def batch_done(self, number, task, done, total, loss):
                if label == "vcl-kfac" and (number, done) == (1, 2):
                    os.kill(os.getpid(), signal.SIGTERM)

            def task_done(self, number, task, accuracies):
                pass

        yield Watcher()

    with monkeypatch.context() as patch:
        patch.setattr(module, "progress_bar", deadly)
        outcome = vogn(*options, "--output", "run")
    assert outcome.code == 128 + signal.SIGTERM
    assert "vcl-kfac: stopped in task 2 of 2, batch 3" in outcome.err
    command = outcome.err.split("Continue with: ")[1].split()
    assert command == ["vogn", "continual", "--resume", "run"]
    assert vogn(*command[1:]).code == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmark", "permuted-fashion"], "unknown benchmark 'permuted-fashion'"),
        (["--benchmark", "permuted-mnist"], "permuted-mnist comes without its examples: --data npz:FILE"),
        (["--benchmark", "split-mnist", "--data", "npz:mnist.npz"], "no such file: mnist.npz"),
        (["--benchmark", "split-cifar10", "--data", "npz:flat.npz"], "split-cifar10 needs images"),
        (["--benchmark", "split-cifar10", "--data", "npz:flat.npz", "--hidden", "5"], "--hidden goes with perceptrons"),
        (["--norm", "group"], "--norm goes with split-cifar10"),
        (["--benchmark", "split-cifar10", "--data", "x", "--norm", "layer"], "unknown norm 'layer'"),
        (["--benchmark", "split-cifar10", "--data", "x", "--batchnorm", "freeze"], "goes with --norm batch"),
        (["--examples", "100000"], "--examples 100000: digits has 1258 for training"),
        (["--examples", "-1"], "--examples -1 must be"),
        (["--method", "ewc,lwf"], "unknown methods lwf"),
        (["--method", "ewc,ewc"], "names one twice"),
        (["--scenario", "online"], "unknown scenario 'online'"),
        (["--scenario", "class"], "share their classes"),
        (["--tasks", "0"], "--tasks 0 must be at least 1"),
        (["--benchmark", "split-digits", "--classes-per-task", "1"], "--classes-per-task 1"),
        (["--hidden", "10,x"], "--hidden '10,x' must be whole numbers"),
        (["--hidden", "0"], "--hidden needs widths"),
        (["--lr", "0"], "--lr 0.0 must be"),
        (["--strength", "-1"], "--strength -1.0 must be"),
        (["--seed", "-1"], "--seed -1 must be"),
        (["--benchmark", "split-digits", "--tasks", "3"], "--tasks goes with permuted benchmarks"),
        (["--classes-per-task", "3"], "--classes-per-task goes with split benchmarks"),
        (["--method", "finetune,joint", "--strength", "3"], "finetune, joint have none"),
        (["--data", "npz:none.npz"], "no such file: none.npz"),
        (["--resume", "nowhere"], "nowhere is not a run folder"),
        (["--resume", "nowhere", "--epochs", "3"], "excludes --output and all settings"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_ends_in_one_line(vogn, tmp_path, options, message):
    x = np.zeros((20, 3), dtype=np.float32)
    np.savez(tmp_path / "flat.npz", x_train=x, y_train=np.arange(20) % 4, x_test=x, y_test=np.arange(20) % 4)
    outcome = vogn("continual", *options)
    assert outcome.code == 2 and message in outcome.err and len(outcome.err.splitlines()) == 1


def test_tasks_that_cannot_be_learnt_are_named(vogn, tmp_path):
    x = np.zeros((20, 3), dtype=np.float32) + np.arange(20, dtype=np.float32)[:, None]
    y, missing = np.arange(20) % 4, np.arange(20) % 3  # class 3 is in the training part alone
    np.savez(tmp_path / "odd.npz", x_train=x, y_train=y, x_test=x[missing < 2], y_test=(np.arange(20) % 3)[missing < 2])
    outcome = vogn("continual", "--benchmark", "split-digits", "--data", f"npz:{tmp_path / 'odd.npz'}")
    assert outcome.code == 2 and "task 'classes 2, 3' has no test examples" in outcome.err
    assert not (tmp_path / "runs").exists()


def test_settings_of_another_run_are_refused(vogn, tiny, tmp_path):
    (tmp_path / "run").mkdir()
    for text in ("{}", "[]", "{", '{"continual": {"methods": 3, "hidden": [1]}}'):
        (tmp_path / "run" / "config.json").write_text(text)
        outcome = vogn("continual", "--resume", "run")
        assert outcome.code == 2 and len(outcome.err.splitlines()) == 1
