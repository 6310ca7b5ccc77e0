"""`vogn tune` end to end on a tiny data set."""

import itertools
import json
import os
import shlex

import numpy as np
import pytest
import torch

from vogn.data import load_real_data
from vogn.optim import METHODS
from vogn.optim.damping_search import damping_search
from vogn.optim.range_test import learning_rate_range_test
from vogn.optim.temperature_search import temperature_search

TINY = ["--model", "mlp", "--batch-size", "30", "--device", "cpu", "--steps", "40"]


@pytest.mark.parametrize("mode", ["--variational", "--deterministic"])
@pytest.mark.parametrize("method", [name for name, info in METHODS.items() if not info.sets_groups])
def test_every_method_is_tuned_in_both_modes(vogn, tiny, tmp_path, method, mode):
    short = [] if method in ("kfac", "vogn", "ivon") else ["--no-runs"]
    outcome = vogn("tune", "--data", tiny, "--method", method, mode, *TINY, *short, "--output", "run")
    assert outcome.code == 0, outcome.err
    assert ("short runs end with loss" in outcome.out) == (not short)
    record = json.loads((tmp_path / "run" / "range_test.json").read_text())
    found = record["range_test"]
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) <= 40
    assert found["rates"][0] < found["suggestion"] <= found["rates"][-1]
    assert record["settings"]["method"] == method and record["versions"]["torch"].startswith("2.")
    assert (tmp_path / "run" / "range_test.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_its_last_line_is_a_command_that_trains_with_the_rate(vogn, tiny, tmp_path):
    options = ["--prior-precision", "50", "--temperature", "0.1", "--no-augment", "--seed", "3", "--width", "8"]
    outcome = vogn("tune", "--data", tiny, "--method", "kfac", "--deterministic", *options, *TINY, "--output", "run")
    assert outcome.code == 0, outcome.err
    program, *words = shlex.split(outcome.out.strip().splitlines()[-1])
    assert program == "vogn"
    rate = json.loads((tmp_path / "run" / "range_test.json").read_text())["range_test"]["suggestion"]
    trained = vogn(*words, "--epochs", "1", "--samples", "2", "--output", "trained")
    assert trained.code == 0, trained.err
    config = json.loads((tmp_path / "trained" / "config.json").read_text())
    assert config["resolved"]["optimizer"]["lr"] == pytest.approx(rate, rel=0.06)
    expected = {
        "method": "kfac", "variational": False, "data": tiny, "prior_precision": 50, "temperature": 0.1,
        "augment": False, "seed": 3, "width": 8, "model": "mlp", "batch_size": 30, "device": "cpu",
    }  # fmt: skip
    assert expected.items() <= config["settings"].items()


def test_a_search_for_the_damping_ends_in_a_command_with_both(vogn, tiny, tmp_path):
    outcome = vogn("tune", "--data", tiny, "--method", "kfac", "--damping", "0.5", *TINY, "--search-damping")
    assert outcome.code == 0, outcome.err
    (run,) = (tmp_path / "runs").iterdir()
    search = json.loads((run / "range_test.json").read_text())["damping_search"]
    assert {0.05, 0.5, 5.0} & {damping for damping, _ in search["tests"]} and len(search["tests"]) >= 2
    assert outcome.out.count("damping ") >= len(search["tests"])
    program, *words = shlex.split(outcome.out.strip().splitlines()[-1])
    assert program == "vogn" and words.count("--damping") == 1
    trained = vogn(*words, "--epochs", "1", "--samples", "2", "--output", "trained")
    assert trained.code == 0, trained.err
    chosen = json.loads((tmp_path / "trained" / "config.json").read_text())["resolved"]["optimizer"]
    assert chosen["damping"] == pytest.approx(search["damping"], rel=0.06)
    assert chosen["lr"] == pytest.approx(search["suggestion"], rel=0.06)


@pytest.mark.parametrize("epochs, expected", [(2, 1.0), (60, 3.0), (1000, 6.0)])
def test_finalists_run_as_long_as_training_within_bounds(vogn, tiny, monkeypatch, epochs, expected):
    """60 training examples in batches of 30: two steps an epoch; a short run takes 40."""
    seen = []

    def spy(*subjects, longer, **options):
        seen.append(longer)
        return damping_search(*subjects, longer=0.0, **options)

    monkeypatch.setattr("vogn.cli.tuning.damping_search", spy)
    options = ["--method", "kfac", "--epochs", str(epochs), "--search-damping"]
    assert vogn("tune", "--data", tiny, *TINY, *options).code == 0
    assert seen == [expected]


def test_folds_hold_out_other_examples_of_the_training_part(vogn, tiny, monkeypatch):
    """The parts are disjoint, as large as the validation part, and not trained on."""
    seen = []

    def spy(*subjects, longer, further, held_out, **options):
        size = sum(len(y) for _, y in held_out)
        for batches, outside in further:
            trained = {tuple(row.tolist()) for _, (x, _) in itertools.islice(batches, 10) for row in x.flatten(1)}
            left = {tuple(row.tolist()) for x, _ in outside for row in x.flatten(1)}
            assert len(left) == size and not trained & left
            seen.append((len(trained), left))
        return damping_search(*subjects, longer=longer, further=further, held_out=held_out, **options)

    monkeypatch.setattr("vogn.cli.tuning.damping_search", spy)
    outcome = vogn("tune", "--data", tiny, *TINY, "--epochs", "1", "--search-damping", "--folds", "3")
    assert outcome.code == 0, outcome.err
    (first, a), (second, b) = seen
    assert first == second == 60 - 6 - len(a) and not a & b  # the validation part has six


def test_a_search_for_the_temperature_keeps_the_weight_decay(vogn, tiny, tmp_path):
    options = ["--method", "vogn", "--temperature", "0.3", "--prior-precision", "3", "--epochs", "20"]
    outcome = vogn("tune", "--data", tiny, *options, *TINY, "--search-temperature", "--output", "run")
    assert outcome.code == 0, outcome.err
    record = json.loads((tmp_path / "run" / "range_test.json").read_text())
    search = record["temperature_search"]
    assert outcome.out.count("run at temperature") == len(search["trials"]) >= 3
    _, *words = shlex.split(outcome.out.strip().splitlines()[-1])
    assert vogn(*words, "--epochs", "1", "--samples", "2", "--no-compare", "--output", "trained").code == 0
    trained = json.loads((tmp_path / "trained" / "config.json").read_text())["resolved"]["optimizer"]
    tuned = record["resolved"]["optimizer"]
    assert trained["weight_decay"] == pytest.approx(tuned["weight_decay"], rel=0.01)
    assert trained["ess"] == pytest.approx(tuned["ess"] * search["factor"], rel=0.01)
    assert search["factor"] > 1.0  # with 60 examples, 0.3 is a lot of noise


def test_temperatures_are_compared_in_another_order_than_dampings(vogn, tiny, monkeypatch):
    orders = []

    def spy(name, found):
        def searched(optimizer, model, likelihood, batches, **options):
            indices = [indices for indices, _ in itertools.islice(batches, 2)]  # one epoch
            orders.append((name, torch.cat(indices).tolist()))
            return found(optimizer, model, likelihood, batches, **options)

        return searched

    for name, found in (("damping_search", damping_search), ("temperature_search", temperature_search)):
        monkeypatch.setattr(f"vogn.cli.tuning.{name}", spy(name, found))
    options = ["--method", "vogn", "--epochs", "1", "--damping", "0.1", "--search-damping", "--search-temperature"]
    assert vogn("tune", "--data", tiny, *TINY, *options).code == 0
    (first, a), (second, b) = orders
    assert (first, second) == ("damping_search", "temperature_search")
    assert a != b and sorted(a) == sorted(b)


def test_it_says_the_same_twice_and_leaves_the_global_generator(vogn, tiny, tmp_path):
    lines = []
    for name in ("run_a", "run_b"):
        outcome = vogn("tune", "--data", tiny, *TINY, "--output", name)
        assert outcome.code == 0, outcome.err
        lines.append(outcome.out.replace(name, ""))
    assert lines[0] == lines[1]


def test_a_range_that_is_too_short_is_told(vogn, tiny):
    outcome = vogn("tune", "--data", tiny, *TINY, "--smallest", "0.001", "--largest", "0.02", "--output", "run")
    assert outcome.code == 0, outcome.err
    assert "the loss still fell at the largest rate: a larger --largest may find a better one" in outcome.out


def test_bounds_are_those_that_were_given(vogn, tiny, tmp_path):
    outcome = vogn("tune", "--data", tiny, *TINY, "--smallest", "0.001", "--largest", "0.5", "--output", "run")
    assert outcome.code == 0, outcome.err
    rates = json.loads((tmp_path / "run" / "range_test.json").read_text())["range_test"]["rates"]
    assert rates[0] == pytest.approx(0.001) and rates[-1] == pytest.approx(0.5)


def test_images_that_are_augmented_and_a_name_of_its_own(vogn, tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = generator.normal(size=(60, 16, 16)).astype(np.float32) + 2 * labels[:, None, None]
    np.savez("images.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    assert vogn("tune", "--data", "npz:images.npz", *TINY).code == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("images-vogn-variational-tune-")


def test_tests_of_the_same_second_get_different_names(vogn, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("vogn.cli.run_folder.time.strftime", lambda form: "20260101-120000")
    for _ in range(2):
        assert vogn("tune", "--data", tiny, *TINY, "--no-runs").code == 0
    name = "tiny-vogn-variational-tune-20260101-120000"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {name, f"{name}-2"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "newton"], ["unknown method 'newton'", "kfac"]),
        (["--method", "kalman"], ["--method kalman sets its step sizes itself"]),
        (["--smallest", "0", "--largest", "1"], ["--smallest is 0.0; it must be above 0"]),
        (["--largest", "nan"], ["--largest is nan; it must be above 0"]),
        (["--smallest", "1", "--largest", "0.1"], ["--smallest is 1.0; it must be below --largest 0.1"]),
        (["--smallest", "0.1"], ["--smallest needs --largest"]),
        (["--search-damping", "--no-runs"], ["--search-damping compares the ends of short runs"]),
        (["--search-damping", "--damping", "0"], ["--search-damping begins at --damping 0"]),
        (["--search-damping", "--method", "ivon"], ["--search-damping begins at --damping 0"]),
        (["--folds", "2"], ["--folds repeats the longer runs of --search-damping"]),
        (["--folds", "0", "--search-damping"], ["--folds is 0; with 1258 training and 180 validation examples 1 to 4"]),
        (["--search-temperature", "--deterministic"], ["--search-temperature needs --variational"]),
        (["--search-temperature", "--ess", "100"], ["--search-temperature excludes --ess"]),
        (["--search-temperature", "--data", "diabetes"], ["--search-temperature is for classification"]),
        (["--damping", "-1"], ["--damping is -1.0; it must be at least 0"]),
        (["--steps", "5"], ["--steps is 5; it must be at least 20"]),
        (["--data", "mnist"], ["unknown data 'mnist'"]),
        (["--ess", "100", "--temperature", "0.5"], ["--ess excludes --temperature"]),
        (["--model", "resnet9"], ["unknown model 'resnet9'"]),
        (["--device", "toaster"], ["--device toaster"]),
    ],
)
def test_bad_input_ends_in_one_line(vogn, tmp_path, options, words):
    outcome = vogn("tune", "--output", "run", *options)
    assert outcome.code == 2 and len(outcome.err.strip().splitlines()) == 1
    assert outcome.err.startswith("Error: ")
    for word in words:
        assert word in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused(vogn, tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("")
    outcome = vogn("tune", "--data", tiny, *TINY, "--output", "run")
    assert outcome.code == 2 and "exists already" in outcome.err


def test_data_without_signal_end_in_one_line(vogn, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 4)).astype(np.float32)
    np.savez("noise.npz", x_train=0 * x, y_train=np.arange(60) % 3, x_test=x, y_test=np.arange(60) % 3)
    outcome = vogn("tune", "--data", "npz:noise.npz", *TINY, "--prior-precision", "1e9", "--output", "run")
    assert outcome.code == 1 and outcome.err.startswith("Error: the loss does not fall at any learning rate")
    assert len(outcome.err.strip().splitlines()) == 1


def test_the_number_of_threads_is_torch_s(vogn, tiny, tmp_path):
    threads = torch.get_num_threads()
    outcome = vogn("tune", "--data", tiny, *TINY, "--threads", threads, "--output", "run")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "run" / "range_test.json").read_text())["resolved"]["threads"] == threads


def test_short_runs_come_down_to_a_fixed_noise_as_training_does(vogn, tmp_path, monkeypatch):
    """A noise of 1 beside targets of standard deviation 30."""
    x = np.random.default_rng(0).normal(size=(120, 2))
    y = 10 * (3 * x[:, 0] + np.sin(x[:, 1])) + np.random.default_rng(1).normal(size=len(x))
    np.savez(tmp_path / "near.npz", x_train=x, y_train=y)
    seen = []

    def spy(optimizer, model, likelihood, loader, **options):
        seen.append(likelihood)
        return learning_rate_range_test(optimizer, model, likelihood, loader, **options)

    monkeypatch.setattr("vogn.cli.tuning.learning_rate_range_test", spy)
    data = f"npz:{tmp_path / 'near.npz'}"
    for noise in ("1", "28"):
        outcome = vogn("tune", "--data", data, "--noise", noise, *TINY, "--output", noise)
        assert outcome.code == 0, outcome.err
    outputs, targets = torch.zeros(4, 1), torch.full((4, 1), 0.01)
    for likelihood, noise in zip(seen, (1.0, 28.0), strict=True):
        assert float(likelihood.noise) == 1.0  # a standard deviation of the targets
        likelihood.follow(outputs, targets)
        assert float(likelihood.noise) == pytest.approx(noise / load_real_data(data).targets.std)


def test_what_was_found_is_told_before_it_is_written(vogn, tiny, tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vogn.cli.run_folder.RunFolder.write_json", full)
    outcome = vogn("tune", "--data", tiny, *TINY, "--no-runs", "--output", "run")
    assert outcome.code != 0 and "vogn train" in outcome.out


def test_a_folder_that_cannot_be_written_into_is_refused_before_the_work(vogn, tiny, tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    outcome = vogn("tune", "--data", tiny, *TINY, "--output", "run")
    words = " ".join(outcome.err.replace("│", " ").split())  # paths of any length are wrapped
    assert outcome.code == 2 and "cannot be written into" in words and "short runs" not in outcome.out


def test_a_folder_that_is_taken_cannot_be_resumed(vogn, tiny, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "file").touch()
    outcome = vogn("tune", "--data", tiny, *TINY, "--output", "run")
    words = " ".join(outcome.err.replace("│", " ").split())
    assert outcome.code == 2 and "give another --output" in words and "--resume" not in words
