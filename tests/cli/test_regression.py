"""Regression from the command line: figures and predictions in the unit of the targets, resumed runs, bad input."""

import json
import math
import os
import signal

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression
from sklearn.metrics import roc_auc_score

from real_tables import TINY, refused, results, save
from vogn.cli import training
from vogn.data import load_real_data
from vogn.optim import METHODS
from vogn.posterior import GaussianPosterior


def test_train_leaves_a_complete_run_folder(vogn, table, tmp_path):
    outcome = vogn("train", "--data", table, *TINY, "--output", "run")
    assert outcome.code == 0, outcome.err
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["settings"]["task"] == "regression" and config["settings"]["noise"] is None
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert {"train_loss", "train_rmse", "validation_loss", "validation_rmse"} <= set(rows[0])
    assert "train_accuracy" not in rows[0]
    for name in ("learning_curves.png", "quantiles.png", "intervals.png"):
        assert (tmp_path / "run" / name).read_bytes().startswith(b"\x89PNG\r\n")
    assert not (tmp_path / "run" / "reliability.png").exists()
    for words in ("RMSE", "NLL", "CRPS", "covered", "width", "quant.", "3 samples", "standard deviation"):
        assert words in outcome.out
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    stored = GaussianPosterior.load(tmp_path / "run" / "posterior.safetensors").likelihood
    assert stored == content["noise"]["likelihood"] and stored["noise"] == "learn"


def test_predictions_are_in_the_unit_of_the_targets_and_agree_with_the_table(vogn, table, tmp_path):
    assert vogn("train", "--data", table, *TINY, "--output", "run").code == 0
    with np.load(table.removeprefix("npz:")) as archive:
        x, y = archive["x_test"], archive["y_test"]
    np.savez("x.npz", x=x)
    assert vogn("predict", "run", "--input", "x.npz", "--output", "p.npz").code == 0
    with np.load("p.npz") as archive:
        p = {name: archive[name] for name in archive.files}
    assert set(p) == {"mean", "variance", "aleatoric", "epistemic", "low", "high", "level"}
    assert all(p[name].shape == (30,) for name in set(p) - {"level"}) and p["level"] == 0.9
    np.testing.assert_allclose(p["variance"], p["aleatoric"] + p["epistemic"], rtol=1e-5)
    assert (p["epistemic"] > 0).all() and len(np.unique(p["aleatoric"])) == 1
    (row,) = (row for row in results(tmp_path / "run") if row["how"] == "3 samples")
    assert math.sqrt(np.mean((p["mean"] - y) ** 2)) == pytest.approx(row["rmse"], rel=1e-5)
    assert np.mean((p["low"] <= y) & (y <= p["high"])) == pytest.approx(row["coverage"])
    assert np.mean(p["high"] - p["low"]) == pytest.approx(row["width"], rel=1e-5)
    assert 300 - 100 < p["mean"].mean() < 300 + 100


def test_a_change_of_unit_changes_nothing_but_the_unit(vogn, tmp_path):
    found = {}
    for unit in (1.0, 1000.0):
        data = save(tmp_path / f"{unit}.npz", unit=unit)
        assert vogn("train", "--data", data, *TINY, "--compare", "--output", f"run-{unit}").code == 0
        outcome = vogn("evaluate", f"run-{unit}", "--bootstrap", "0", "--ood", data)
        assert outcome.code == 0, outcome.err
        evaluated = json.loads((tmp_path / f"run-{unit}" / "evaluation" / "metrics.json").read_text())
        found[unit] = results(tmp_path / f"run-{unit}"), evaluated
    (small, small_evaluated), (large, large_evaluated) = found.values()
    assert len(small) == 4
    for one, other in zip(small, large, strict=True):
        for name in ("rmse", "crps", "width", "interval_score", "sharpness"):
            assert other[name] == pytest.approx(1000 * one[name], rel=1e-3)
        assert other["nll"] == pytest.approx(one["nll"] + math.log(1000), abs=1e-3)
        for name in ("coverage", "quantile_calibration_error"):
            assert other[name] == pytest.approx(one[name], abs=0.04)
    scores = [
        {label: set(report["scores"]) for label, report in next(iter(each["outside"].values())).items()}
        for each in (small_evaluated, large_evaluated)
    ]
    assert scores[0] == scores[1] == {"vogn, variational, 3 samples": {"variance"}}
    rows = [json.loads((tmp_path / f"run-{unit}" / "metrics.jsonl").read_text().splitlines()[-1]) for unit in found]
    for part in ("train", "validation"):
        assert rows[1][f"{part}_rmse"] == pytest.approx(1000 * rows[0][f"{part}_rmse"], rel=1e-3)
        assert rows[1][f"{part}_loss"] == pytest.approx(rows[0][f"{part}_loss"] + math.log(1000), abs=1e-3)


def test_coverage_is_near_nominal_on_a_linear_gaussian_table(vogn, tmp_path):
    generator = np.random.default_rng(3)
    x = generator.normal(size=(1200, 3))
    y = x @ [1.0, -2.0, 0.5] + 0.5 * generator.normal(size=1200)
    np.savez("linear.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:], y_test=y[400:])
    (tmp_path / "line.py").write_text(
        "from torch import nn\ndef make(num_outputs, input_shape):\n    return nn.Linear(input_shape[0], num_outputs)\n"
    )
    arguments = ["--data", "npz:linear.npz", "--model", "line:make", "--method", "kfac", "--epochs", "60"]
    outcome = vogn("train", *arguments, "--samples", "16", "--device", "cpu", "--output", "run")
    assert outcome.code == 0, outcome.err
    (row,) = (row for row in results(tmp_path / "run") if row["how"] == "16 samples")
    assert row["coverage"] == pytest.approx(0.9, abs=0.035)  # 3.3 standard errors of 800 targets
    assert row["quantile_calibration_error"] < 0.04
    least_squares = LinearRegression().fit(x[:400], y[:400])
    assert row["rmse"] == pytest.approx(math.sqrt(np.mean((least_squares.predict(x[400:]) - y[400:]) ** 2)), rel=0.02)
    assert row["nll"] == pytest.approx(math.log(0.5) + 0.5 * math.log(2 * math.pi * math.e), abs=0.06)
    noise = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    learned = math.exp(noise["noise"]["likelihood"]["log_noise"]) * noise["targets"]["std"]
    assert learned == pytest.approx(0.5, rel=0.1)


@pytest.mark.parametrize(
    "options",
    [[], ["--method", "kfac", "--deterministic"], ["--method", "ivon", "--noise", "12"], ["--noise", "44"]]
    + [["--model", "dropped_numbers:make"]],
    ids=["vogn", "kfac-deterministic", "ivon-fixed-noise", "fixed-noise-from-the-start", "dropout"],
)
def test_a_resumed_run_equals_the_uninterrupted_one(vogn, table, tmp_path, monkeypatch, options):
    (tmp_path / "dropped_numbers.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, width=2):\n"
        "    return nn.Sequential(nn.Dropout(0.5), nn.Linear(3, width), nn.Tanh(), nn.Linear(width, num_classes))\n"
    )
    assert vogn("train", "--data", table, *TINY, *options, "--output", "whole").code == 0
    original, count = training.Training._step, iter(range(10**6))

    def step(self, *batch):
        if next(count) == 9:  # in the third epoch, between the two times that a variational run asks the evidence
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_step", step)
        stopped = vogn("train", "--data", table, *TINY, *options, "--output", "parts")
    assert stopped.code == 128 + signal.SIGTERM and "after epoch 2, batch 2" in stopped.err
    assert vogn("train", "--resume", "parts").code == 0
    whole, parts = (torch.load(tmp_path / name / "checkpoint.pt", weights_only=True) for name in ("whole", "parts"))
    assert whole["noise"] == parts["noise"]
    assert ("log_noise" in whole["noise"]["likelihood"]) == ("--noise" not in options)
    assert (whole["noise"]["inflation"] > 1.0) == ("--deterministic" in options)
    for name, weights in whole["model_state"].items():
        assert torch.equal(weights, parts["model_state"][name])
    decays = [[group["weight_decay"] for group in each["optimizer_state"]["param_groups"]] for each in (whole, parts)]
    assert decays[0] == decays[1]
    for name in ("results.json", "prediction.json"):
        pair = [tmp_path / run / name for run in ("whole", "parts")]
        assert pair[0].exists() == pair[1].exists()
        assert not pair[0].exists() or pair[0].read_text() == pair[1].read_text()


def test_evaluate_measures_a_run_beside_its_contenders(vogn, table, tmp_path):
    assert vogn("train", "--data", table, *TINY, "--compare", "--output", "run").code == 0
    far = np.random.default_rng(1).normal(size=(25, 3)) * 30
    np.savez("far.npz", x=far)
    outcome = vogn("evaluate", "run", "--ood", "npz:far.npz", "--report", "--bootstrap", "20")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "run" / "evaluation"
    found = json.loads((folder / "metrics.json").read_text())
    before = results(tmp_path / "run")
    assert list(found["rows"]) == [f"{row['label']}, {row['how']}" for row in before]
    for row in before:
        measured = found["rows"][f"{row['label']}, {row['how']}"]
        for name in ("rmse", "nll", "crps", "coverage", "width", "quantile_calibration_error"):
            assert measured[name] == pytest.approx(row[name])
        assert "rmse" in measured["intervals"]
    report = found["outside"]["npz:far.npz"]
    auroc = report["vogn, variational, 3 samples"]["scores"]["variance"]["auroc"]
    with np.load(table.removeprefix("npz:")) as archive:
        familiar = archive["x_test"]
    variances = []
    for inputs in (familiar, far):
        np.savez("x.npz", x=inputs)
        assert vogn("predict", "run", "--input", "x.npz", "--output", "p.npz").code == 0
        with np.load("p.npz") as archive:
            variances.append(archive["epistemic"])
    assert auroc > 0.7 and auroc == pytest.approx(
        roc_auc_score([0] * len(familiar) + [1] * len(far), np.concatenate(variances)), abs=1e-3
    )
    assert {"quantiles.png", "intervals.png", "learning_curves.png"} <= set(found["pictures"])
    page = (folder / "report.html").read_text("utf-8")
    assert "RMSE" in page and "AdamW, mean" in page and "unit of the targets" in page


def test_the_validation_part_chooses_the_temperature_of_prediction(vogn, table, tmp_path):
    assert vogn("train", "--data", table, *TINY, "--output", "run").code == 0
    path = tmp_path / "run" / "prediction.json"
    stored = json.loads(path.read_text())
    losses = {float(key): value for key, value in stored["validation_nll"].items()}
    assert len(losses) == 4 and stored["temperature"] == min(losses, key=lambda key: losses[key])
    np.savez("x.npz", x=np.eye(3))
    variances = []
    for temperature in (0.3, 10.0):
        path.write_text(json.dumps(stored | {"temperature": temperature}))
        assert vogn("predict", "run", "--input", "x.npz", "--output", "p.npz").code == 0
        with np.load("p.npz") as archive:
            variances.append(archive["epistemic"].mean())
    assert variances[1] > 3 * variances[0]


def test_the_diabetes_data_need_no_file(vogn, tmp_path):
    outcome = vogn("train", "--data", "diabetes", "--epochs", "2", "--samples", "2", "--output", "run")
    assert outcome.code == 0, outcome.err
    assert "309 / 45 / 88 examples" in outcome.out
    assert results(tmp_path / "run")[0]["rmse"] > 20
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["resolved"]["model"]["name"] == "mlp" and config["resolved"]["parameters"] == 10 * 50 + 50 + 50 + 1


def test_epochs_make_about_two_thousand_steps(vogn, table, tmp_path, monkeypatch):
    from vogn.cli.regression import Regression
    from vogn.cli.settings import Settings

    task = Regression(load_real_data(table))
    steps = {}
    for batch_size in (1, 5, 64):
        settings = task.settled(Settings(data=table, batch_size=batch_size), {})
        steps[batch_size] = settings.epochs
        assert settings.warmup_epochs == 0.05 * settings.epochs
    assert steps == {1: math.ceil(2000 / 58), 5: math.ceil(2000 / 12), 64: 400}
    assert task.settled(Settings(epochs=3, warmup_epochs=1.0), {"epochs": 3, "warmup_epochs": 1.0}).epochs == 3


@pytest.mark.parametrize(
    ("method", "mode"), [(name, mode) for name, info in METHODS.items() for mode in info.modes], ids="-".join
)
def test_every_method_runs_in_its_modes(vogn, table, tmp_path, method, mode):
    short = ["--epochs", "2", "--batch-size", "32", "--width", "4", "--samples", "2", "--device", "cpu"]
    outcome = vogn("train", "--data", table, "--method", method, f"--{mode}", *short, "--output", "run")
    assert outcome.code == 0, outcome.err
    for row in results(tmp_path / "run"):
        assert all(math.isfinite(row[name]) for name in ("rmse", "nll", "crps"))


def test_tune_ends_in_a_command_that_trains(vogn, table):
    outcome = vogn("tune", "--data", table, "--width", "4", "--steps", "40", "--device", "cpu", "--output", "tuned")
    assert outcome.code == 0, outcome.err
    assert outcome.out.strip().splitlines()[-1].startswith("vogn train --data")


WHOLE = np.repeat(np.arange(16), 4)


@pytest.mark.parametrize(
    ("changes", "options", "task", "words"),
    [
        ({}, [], "regression", ""),
        ({"y_train": WHOLE, "y_test": np.arange(30) % 16}, [], "classification", ""),
        ({"y_train": WHOLE, "y_test": np.arange(30) % 16}, ["--task", "regression"], "regression", ""),
        ({"y_train": WHOLE * 1.0, "y_test": np.arange(30) % 16}, [], "classification", "task regression takes them"),
        ({"y_train": WHOLE * 2.0}, [], "regression", ""),
        ({"y_train": np.arange(64) // 2, "y_test": np.arange(30)}, [], "classification", "whole numbers, 32 classes"),
    ],
    ids=["floats", "labels", "told", "float labels", "float gaps", "many classes"],
)
def test_the_targets_choose_the_task(vogn, tmp_path, changes, options, task, words):
    data = save(tmp_path / "data.npz", **changes)
    outcome = vogn("train", "--data", data, *options, *TINY, "--epochs", "1", "--output", "run")
    assert outcome.code == 0, outcome.err
    assert json.loads((tmp_path / "run" / "config.json").read_text())["settings"]["task"] == task
    assert (words in outcome.out) if words else ("are taken for" not in outcome.out)
    assert vogn("evaluate", "run", "--bootstrap", "0").code == 0
    assert vogn("train", "--resume", "run").code == 0


NAN = np.where(np.arange(64) < 3, np.nan, 1.5)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({"y_train": NAN}, [], ["3 of 64 targets are NaN or infinite"]),
        ({"y_test": np.full(30, np.inf)}, [], ["[test]", "30 of 30 targets are NaN or infinite"]),
        ({"y_test": np.arange(30)}, [], ["[test] holds whole numbers (int64)", "use the same kind"]),
        ({"y_train": np.full((64, 2), 0.5)}, [], ["targets of shape (64, 2)", "one number per input"]),
        ({"y_train": np.full(63, 0.5)}, [], ["64 inputs but targets of shape (63,)"]),
        ({"y_train": np.full(64, 2.5)}, [], ["all 58 targets are 2.5", "constant"]),
        ({"y_train": np.full(64, 1e200) * np.arange(64)}, [], ["too large or too small to standardise"]),
        ({"y_train": np.arange(64) * 2, "y_test": WHOLE[:30]}, [], ["class-count", "choose the task regression"]),
        ({"y_train": np.arange(64) - 5}, [], ["labels out of range", "choose the task regression"]),
        ({"y_train": np.array(["a", "b"] * 32)}, ["--task", "regression"], ["targets hold <U1", "real numbers"]),
        ({}, ["--task", "classification"], ["labels hold float64 values"]),
        ({}, ["--task", "clustering"], ["unknown task 'clustering'", "auto, classification, regression"]),
        ({}, ["--noise", "0"], ["--noise is 0", "above 0"]),
        ({}, ["--noise", "1e12"], ["--noise is 1e+12", "standard deviation"]),
        ({}, ["--norm", "batch"], ["takes no --norm"]),
        ({}, ["--model", "wide:make"], ["outputs of shape (2, 2)", "(2, 1) is wanted"]),
        ({}, ["--model", "flat:make"], ["outputs of shape (2,)", "(2, 1) is wanted"]),
    ],
)
def test_bad_targets_and_options(vogn, tmp_path, changes, options, words):
    (tmp_path / "wide.py").write_text("from torch import nn\ndef make(width): return nn.Linear(3, 2)\n")
    (tmp_path / "flat.py").write_text(
        "from torch import nn\ndef make(width): return nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))\n"
    )
    data = save(tmp_path / "data.npz", **changes)
    refused(vogn("train", "--data", data, *TINY, *options, "--output", "run"), *words)
    assert not (tmp_path / "run").exists()


def test_too_few_rows(vogn, tmp_path):
    refused(vogn("train", "--data", save(tmp_path / "few.npz", rows=9), "--output", "run"), "at least 10")
    data = save(tmp_path / "fewer.npz", rows=2, x_test=None, y_test=None)
    refused(vogn("train", "--data", data, "--output", "run"), "too few to hold out a test part")


def test_classes_have_no_noise_and_names_are_no_numbers(vogn, tiny):
    refused(vogn("train", "--data", tiny, "--noise", "1", "--output", "run"), "class labels", "--task regression")
    named = vogn("train", "--data", "digits", "--noise", "1", "--output", "run")
    refused(named, "--noise", "digits has class labels; leave it out")
    assert "--task" not in named.err  # digits' classes have names
    refused(vogn("train", "--data", "digits", "--task", "regression"), "digits has classes with names")


def test_evaluate_and_predict_refuse_what_does_not_fit(vogn, table, tmp_path):
    assert vogn("train", "--data", table, *TINY, "--epochs", "1", "--output", "run").code == 0
    labels = {"y_train": np.arange(64) % 3, "y_test": np.arange(30) % 3}
    refused(vogn("evaluate", "run", "--data", save(tmp_path / "c.npz", **labels)), "whole numbers", "class labels")
    refused(vogn("evaluate", "run", "--data", "digits"), "classes with names")
    refused(vogn("evaluate", "run", "--shift"), "--shift", "this run predicts numbers")
    refused(vogn("train", "--resume", "run", "--task", "classification"), "task = regression, not classification")
    refused(vogn("train", "--resume", "run", "--noise", "3"), "noise = None, not 3.0")
    np.savez("x.npz", x=np.zeros((3, 5)))
    refused(vogn("predict", "run", "--input", "x.npz", "--output", "p.npz"), "(5,)", "(3,)")
    assert vogn("evaluate", "run", "--data", save(tmp_path / "o.npz", unit=3.0), "--bootstrap", "0").code == 0
    other = save(tmp_path / "table.npz", unit=7.0)  # the file of the run, changed
    assert other == table
    refused(vogn("evaluate", "run"), "was written for another targets")
