"""A resumed run equals the uninterrupted one to the bit; a signal leaves a run that can go on."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from vogn.cli import training
from vogn.cli.errors import InterruptedRunError
from vogn.cli.interruption import Interruption

TINY = ["--epochs", "3", "--batch-size", "16", "--width", "2", "--samples", "2", "--device", "cpu"]


def assert_equal(left, right, path=""):
    """Equality of nested containers, tensors to the bit."""
    assert type(left) is type(right), path
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), path
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), path
        for key in left:
            assert_equal(left[key], right[key], f"{path}/{key}")
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), path
        for number, pair in enumerate(zip(left, right, strict=True)):
            assert_equal(*pair, f"{path}/{number}")
    else:
        assert left == right, path


def timeless_metrics(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def assert_same_run(left, right):
    contents = [torch.load(run / "checkpoint.pt", weights_only=True) for run in (left, right)]
    assert_equal(*contents)
    assert timeless_metrics(left) == timeless_metrics(right)
    assert (left / "results.json").read_text() == (right / "results.json").read_text()


def stop_after(monkeypatch, steps):
    """Let SIGTERM arrive during step number ``steps`` of the process."""
    original, count = training.Training._step, iter(range(1, 10**6))

    def step(self, *batch):
        if next(count) == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *batch)

    monkeypatch.setattr(training.Training, "_step", step)


@pytest.mark.parametrize(
    "options",
    [
        ["--norm", "batch"],
        ["--deterministic", "--norm", "group"],
        ["--method", "ivon"],
        ["--method", "ekfac", "--model", "mlp"],
        ["--model", "dropped:make"],
        ["--method", "fngd", "--deterministic", "--norm", "batch"],
    ],
    ids=["vogn-batchnorm", "deterministic", "ivon", "ekfac", "dropout", "fngd-frozen"],
)
def test_resumed_equals_uninterrupted(vogn, tiny, tmp_path, monkeypatch, options):
    (tmp_path / "dropped.py").write_text(
        "from torch import nn\n"
        "def make(num_classes, width=2):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, num_classes))\n"
    )
    assert vogn("train", "--data", tiny, *TINY, *options, "--output", "whole").code == 0
    with monkeypatch.context() as patch:
        stop_after(patch, steps=6)  # the second batch of the second epoch
        stopped = vogn("train", "--data", tiny, *TINY, *options, "--output", "parts")
    assert stopped.code == 128 + signal.SIGTERM
    assert "after epoch 1, batch 2" in stopped.err and "vogn train --resume parts" in stopped.err
    resumed = vogn("train", "--resume", "parts")
    assert resumed.code == 0, resumed.err
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_on_a_relative_path_goes_on_in_another_folder(vogn, tiny, tmp_path, monkeypatch):
    relative = f"npz:{os.path.relpath(tiny.removeprefix('npz:'), tmp_path)}"
    options = ["--data", relative, *TINY, "--model", "mlp", "--output", "run"]
    with monkeypatch.context() as patch:
        stop_after(patch, steps=6)
        assert vogn("train", *options).code == 143
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert vogn("train", "--resume", tmp_path / "run", "--data", tiny).code == 0  # the same file in other words
    assert vogn("evaluate", tmp_path / "run").code == 0


def test_a_comparison_stopped_in_its_second_run_goes_on_there(vogn, tiny, tmp_path, monkeypatch):
    arguments = ["train", "--data", tiny, *TINY, "--compare", "--model", "mlp"]
    assert vogn(*arguments, "--output", "whole").code == 0
    with monkeypatch.context() as patch:
        stop_after(patch, steps=14)  # 12 steps each
        stopped = vogn(*arguments, "--output", "parts")
    assert stopped.code == 143 and "deterministic" in stopped.err
    assert vogn("train", "--resume", "parts").code == 0
    for run in ("compare-vogn-deterministic", "compare-adamw"):
        assert timeless_metrics(tmp_path / "whole" / run) == timeless_metrics(tmp_path / "parts" / run)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_run_killed_without_warning_goes_on_from_its_last_checkpoint(vogn, tiny, tmp_path, monkeypatch):
    assert vogn("train", "--data", tiny, *TINY, "--output", "whole").code == 0
    original = training.Training._step

    def die(self, *batch):
        if (self.session.position.epoch, self.session.position.batch) == (1, 3):
            raise RuntimeError("power failure")
        return original(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "_step", die)
        with pytest.raises(RuntimeError, match="power failure"):
            vogn("train", "--data", tiny, *TINY, "--checkpoint-every", "2", "--output", "parts")
    content = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert (content["position"]["epoch"], content["position"]["batch"]) == (1, 2)
    with (tmp_path / "parts" / "metrics.jsonl").open("a") as file:
        # what a later epoch left behind, its last line cut short
        file.write('{"epoch": 2, "train_loss": 0.5}\n{"epoch": 3, "tra')
    assert vogn("train", "--resume", "parts").code == 0
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing_but_prints_its_table(vogn, tiny, tmp_path):
    assert vogn("train", "--data", tiny, *TINY, "--output", "run").code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    outcome = vogn("train", "--resume", "run")
    assert outcome.code == 0 and "NLL" in outcome.out
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}


def test_a_failed_write_leaves_the_old_checkpoint(vogn, tiny, tmp_path, monkeypatch):
    from vogn.cli.run_folder import RunFolder

    folder = RunFolder.create(tmp_path / "run")
    folder.save_checkpoint({"value": 1})
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError("disk full")))
        folder.save_checkpoint({"value": 2})
    assert folder.load_checkpoint(torch.device("cpu"))["value"] == 1
    assert [path.name for path in folder.path.iterdir()] == ["checkpoint.pt"]


@pytest.fixture
def usual_interrupt():
    """Where the tests run in the background of a shell, it has told them to ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_second_signal_acts_as_usual(usual_interrupt):
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert issubclass(InterruptedRunError, Exception)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_real_process_stops_resumably(tiny, tmp_path, number):
    command = [sys.executable, "-m", "vogn.cli", "train", "--data", tiny, *TINY, "--output", "run"]
    command += ["--epochs", "100000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "checkpoint.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 128 + number
    assert "vogn train --resume run" in errors and "Traceback" not in errors
    content = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)
    assert content["position"]["epoch"] >= 1
