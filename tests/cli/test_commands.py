"""The commands end to end on a tiny data set."""

import json
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch

from vogn.optim import METHODS

TINY = ["--epochs", "2", "--batch-size", "16", "--width", "4", "--samples", "3", "--device", "cpu"]


def test_train_leaves_a_complete_run_folder(vogn, tiny, tmp_path):
    outcome = vogn("train", "--data", tiny, *TINY, "--output", "run")
    assert outcome.code == 0, outcome.err
    run = tmp_path / "run"
    config = json.loads((run / "config.json").read_text())
    assert config["settings"]["data"] == tiny and config["settings"]["method"] == "vogn"
    assert set(config["versions"]) == {"python", "vogn", "torch", "numpy", "scikit-learn"}
    assert config["versions"]["torch"].startswith("2.")
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert all(np.isfinite(list(row.values())).all() for row in rows)
    for name in ("learning_curves.png", "reliability.png"):
        assert (run / name).read_bytes().startswith(b"\x89PNG\r\n")
    assert torch.load(run / "checkpoint.pt", weights_only=True)["position"]["epoch"] == 2
    assert not list(run.glob(".*.tmp"))
    for word in ("accuracy", "NLL", "Brier", "ECE", "vogn, variational", "3 samples"):
        assert word in outcome.out


def test_the_final_table_holds_what_evaluate_finds(vogn, tiny, tmp_path):
    vogn("train", "--data", tiny, *TINY, "--output", "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    outcome = vogn("evaluate", "run", "--bootstrap", "0")
    assert outcome.code == 0, outcome.err
    assert [row["how"] for row in results] == ["mean", "3 samples"]
    for row in results:
        line = next(line for line in outcome.out.splitlines() if row["how"] in line)
        for figure in (row["nll"], row["brier"], row["ece"]):
            assert f"{figure:.4f}" in line
    assert vogn("evaluate", "run", "--data", tiny, "--part", "validation", "--bootstrap", "0").code == 0


def test_ess_and_weight_decay_follow_from_the_options(vogn, tiny, tmp_path):
    options = ["--prior-precision", "8", "--temperature", "0.5", "--augmentation-factor", "3", "--lr", "0.002"]
    assert vogn("train", "--data", tiny, *TINY, *options, "--output", "run").code == 0
    optimizer = json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]["optimizer"]
    ess = 54 * 3 / 0.5  # 60 training examples less a tenth for validation
    assert optimizer["ess"] == ess and optimizer["weight_decay"] == 8 / ess and optimizer["lr"] == 0.002
    assert vogn("train", "--data", tiny, *TINY, "--ess", "77", "--output", "other").code == 0
    assert json.loads((tmp_path / "other" / "config.json").read_text())["resolved"]["optimizer"]["ess"] == 77


def test_compare_adds_the_twin_and_adamw(vogn, tiny, tmp_path):
    outcome = vogn("train", "--data", tiny, *TINY, "--compare", "--output", "run")
    assert outcome.code == 0, outcome.err
    rows = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert [(row["label"], row["how"]) for row in rows] == [
        ("vogn, variational", "mean"),
        ("vogn, variational", "3 samples"),
        ("vogn, deterministic", "mean"),
        ("AdamW", "mean"),
    ]


@pytest.mark.parametrize("mode", ["--variational", "--deterministic"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_in_both_modes(vogn, tiny, tmp_path, method, mode):
    arguments = ["--epochs", "1", "--model", "mlp", "--batch-size", "30", *TINY[4:]]
    outcome = vogn("train", "--data", tiny, "--method", method.upper(), mode, *arguments, "--output", "run")
    assert outcome.code == 0, outcome.err
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["contender"] == f"{method}-{mode[2:]}"


def test_predict_writes_the_averaged_probabilities(vogn, tiny, tmp_path):
    vogn("train", "--data", tiny, *TINY, "--output", "run")
    test = np.load(tiny.removeprefix("npz:"))
    np.savez("x.npz", x=test["x_test"])
    outcome = vogn("predict", "run", "--input", "x.npz", "--output", "p.npz")
    assert outcome.code == 0, outcome.err
    found = np.load("p.npz", allow_pickle=False)
    p = found["probabilities"]
    assert p.shape == (20, 3) and found["variance"].shape == (20, 3)
    assert found["class_names"].tolist() == ["0", "1", "2"]
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found["labels"], p.argmax(axis=1))
    np.testing.assert_allclose(found["entropy"], -(p * np.log(p)).sum(axis=1), atol=1e-5)
    nll = -np.log(p[np.arange(20), test["y_test"]]).mean()
    results = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    assert nll == pytest.approx(results[1]["nll"], abs=1e-5)


def test_a_model_of_ones_own(vogn, tiny, tmp_path):
    (tmp_path / "my_model.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, num_classes))\n"
        "def wrong():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    arguments = ["--data", tiny, "--epochs", "1", "--samples", "2"]
    assert vogn("train", *arguments, "--model", "my_model:make", "--output", "run").code == 0
    wrong = vogn("train", *arguments, "--model", "my_model:wrong", "--output", "other")
    assert wrong.code == 2 and "class-count mismatch" in wrong.err and "(2, 7)" in wrong.err


def test_methods_lists_every_method(vogn):
    outcome = vogn("methods")
    assert outcome.code == 0
    for name, info in METHODS.items():
        assert name in outcome.out and info.summary.split()[0] in outcome.out


def test_weight_samples_of_a_deterministic_run_have_batch_statistics_of_their_own(vogn, tiny):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # predict warns where samples share the running statistics of the mean
        arguments = ["--data", tiny, *TINY, "--deterministic", "--norm", "batch"]
        outcome = vogn("train", *arguments, "--prediction-temperature", "10", "--output", "run")
    assert outcome.code == 0 and outcome.err == ""


def test_a_narrow_terminal_without_unicode_gets_a_table_too(tmp_path):
    environment = os.environ | {"COLUMNS": "20", "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    command = [sys.executable, "-m", "vogn.cli", "methods"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "?" in done.stdout  # where a cell is cut short


def test_runs_of_the_same_second_get_different_names(vogn, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("vogn.cli.run_folder.time.strftime", lambda form: "20260101-120000")
    for _ in range(2):
        assert vogn("train", "--data", tiny, *TINY, "--epochs", "1", "--model", "mlp").code == 0
    name = "tiny-vogn-variational-20260101-120000"
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {name, f"{name}-2"}


def test_runs_get_a_name_of_their_own(vogn, tiny, tmp_path):
    assert vogn("train", "--data", tiny, *TINY, "--epochs", "1", "--model", "mlp").code == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("tiny-vogn-variational-")


def test_a_deterministic_fngd_freezes_after_its_first_epoch(vogn, tiny, tmp_path):
    """Its table has a coefficient of every training example; the network is a point, and no posterior is asked for."""
    outcome = vogn("train", "--data", tiny, "--model", "mlp", "--method", "fngd", "--deterministic", "--epochs", "2",
                   "--batch-size", "16", "--no-compare", "--output", "run")  # fmt: skip
    assert outcome.code == 0, outcome.err
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["optimizer_state"]
    (group,) = saved["param_groups"]
    assert 0 < group["freeze_after"] < group["steps_done"] and group["share"] == "index"
    tables = [state["memory"]["coefficients"] for state in saved["state"].values() if "memory" in state]
    assert tables and all(bool(t.isfinite().all()) and len(t) == group["examples_measured"] for t in tables)


def test_a_variational_fngd_never_freezes(vogn, tiny, tmp_path):
    outcome = vogn("train", "--data", tiny, "--model", "mlp", "--method", "fngd", "--variational", "--epochs", "2",
                   "--batch-size", "16", "--no-compare", "--output", "run")  # fmt: skip
    assert outcome.code == 0, outcome.err
    saved = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["optimizer_state"]
    assert saved["param_groups"][0]["freeze_after"] is None
