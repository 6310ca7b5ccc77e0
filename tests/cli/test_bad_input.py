"""Bad input ends in one clear line and exit code 2, without a traceback and without half a run."""

import json

import numpy as np
import pytest
import torch

TINY = ["--epochs", "1", "--batch-size", "30", "--samples", "2", "--model", "mlp", "--device", "cpu"]


def refused(outcome, *words):
    assert outcome.code == 2
    assert len(outcome.err.strip().splitlines()) == 1
    assert outcome.err.startswith("Error: ") and "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "newton"], ["unknown method 'newton'", "vogn", "ivon", "kfac"]),
        (["--model", "resnet9"], ["unknown model 'resnet9'", "resnet8"]),
        (["--model", "nowhere:make"], ["importing 'nowhere' failed"]),
        (["--model", "math:nothing"], ["has no name 'nothing'"]),
        (["--model", "math:sqrt"], ["math:sqrt"]),
        (["--norm", "batch", "--model", "mlp"], ["takes no --norm"]),
        (["--data", "npz:/nowhere.npz"], ["no such file: /nowhere.npz"]),
        (["--data", "mnist"], ["unknown data 'mnist'", "npz:FILE"]),
        (["--ess", "100", "--temperature", "0.5"], ["--ess excludes --temperature"]),
        (["--ess", "100", "--augmentation-factor", "2"], ["--ess excludes"]),
        (["--lr", "0"], ["--lr is 0", "above 0"]),
        (["--lr", "nan"], ["--lr is nan"]),
        (["--epochs", "0"], ["--epochs is 0", "at least 1"]),
        (["--seed", "-1"], ["--seed is -1"]),
        (["--schedule", "linear"], ["unknown schedule", "cosine"]),
        (["--device", "cuda:99"], ["--device cuda:99 cannot be used here"]),
        (["--device", "toaster"], ["--device toaster"]),
        (["--resume", "nowhere"], ["nowhere is not a run folder"]),
    ],
)
def test_impossible_options(vogn, tmp_path, options, words):
    new = [] if "--resume" in options else ["--output", "run"]
    refused(vogn("train", *new, *options), *words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x_train": np.full((12, 4), np.nan)}, ["NaN"]),
        ({"y_train": np.arange(12) % 3 - 1}, ["labels out of range: found -1"]),
        ({"y_test": np.full(6, 7)}, ["labels out of range: found 7"]),
        ({"y_train": np.arange(12) % 3 + 1}, ["class-count mismatch"]),
        ({"x_train": np.array([{}] * 12, dtype=object)}, ["pickled objects"]),
    ],
)
def test_bad_data(vogn, tmp_path, changes, words):
    sound = {"x_train": np.eye(12, 4), "y_train": np.arange(12) % 3, "x_test": np.eye(6, 4), "y_test": np.arange(6) % 3}
    np.savez("bad.npz", **(sound | changes))
    refused(vogn("train", "--data", "npz:bad.npz", "--output", "run"), *words)
    assert not (tmp_path / "run").exists()


def test_an_unknown_option_or_command_exits_with_2(vogn):
    assert vogn("train", "--nonsense").code == 2
    assert vogn("dance").code == 2
    assert vogn("train", "--epochs", "many").code == 2


@pytest.fixture
def run(vogn, tiny, tmp_path):
    assert vogn("train", "--data", tiny, *TINY, "--output", "run").code == 0
    return tmp_path / "run"


def test_an_existing_folder_is_not_overwritten(vogn, tiny, run):
    before = (run / "checkpoint.pt").read_bytes()
    refused(vogn("train", "--data", tiny, *TINY, "--output", "run"), "exists already", "--resume")
    assert (run / "checkpoint.pt").read_bytes() == before


def test_resume_refuses_other_settings(vogn, run):
    refused(vogn("train", "--resume", "run", "--model", "resnet8"), "model = mlp, not resnet8")
    refused(vogn("train", "--resume", "run", "--deterministic"), "variational = True, not False")
    refused(vogn("train", "--resume", "run", "--output", "other"), "--resume excludes --output")


def test_checkpoints_of_another_model_or_schema_are_refused(vogn, run):
    path = run / "checkpoint.pt"
    sound = torch.load(path, weights_only=True)
    changes = [
        ({"model": sound["model"] | {"name": "resnet8"}}, "another model"),
        ({"schema": 99}, "schema version 99"),
        ({"contender": "ivon-variational"}, "another contender"),
        ({"model_state": {}}, "does not fit this model"),
        ({"optimizer_state": {}}, "does not fit this model"),
    ]
    for change, message in changes:
        torch.save(sound | change, path)
        for command in (["evaluate", "run"], ["train", "--resume", "run"]):
            refused(vogn(*command), message)
    for content in (b"", b"garbage"):
        path.write_bytes(content)
        refused(vogn("evaluate", "run"), "is damaged or is not a checkpoint")
    path.unlink()
    refused(vogn("evaluate", "run"), "has no checkpoint.pt")


def test_a_checkpoint_cannot_run_code(vogn, run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return __import__("os").mkdir, (str(tmp_path / "exploded"),)

    torch.save({"schema": 1, "model": Bomb()}, run / "checkpoint.pt")
    refused(vogn("evaluate", "run"), "is not a checkpoint")
    assert not (tmp_path / "exploded").exists()


def test_a_damaged_or_foreign_configuration_is_refused(vogn, run):
    path = run / "config.json"
    config = json.loads(path.read_text())
    for content, message in (
        ("{", "is not the configuration"),
        ("[]", "is not the configuration"),
        (json.dumps(config | {"schema": 2}), "schema version 2"),
        (json.dumps(config | {"settings": {"magic": 1}}), "does not hold the settings"),
        (json.dumps(config | {"settings": {"lr": -1}}), "does not hold the settings"),
    ):
        path.write_text(content)
        refused(vogn("evaluate", "run"), message)


def test_evaluate_and_predict_check_what_they_are_given(vogn, run, tmp_path):
    images = np.zeros((10, 8, 8), np.float32)
    np.savez("two.npz", x_train=images, y_train=np.arange(10) % 2, x_test=images, y_test=np.arange(10) % 2)
    refused(vogn("evaluate", "run", "--data", "npz:two.npz"), "class-count mismatch", "2 classes", "has 3")
    refused(vogn("evaluate", "run", "--part", "middle"), "unknown part 'middle'", "test, validation, train")
    refused(vogn("predict", "run", "--input", "nowhere.npz", "--output", "p.npz"), "no such file")
    np.savez("x.npz", x=np.zeros((3, 5, 5)))
    refused(vogn("predict", "run", "--input", "x.npz", "--output", "p.npz"), "(1, 5, 5)", "(1, 8, 8)")
    np.savez("x.npz", x=np.full((3, 8, 8), np.nan))
    refused(vogn("predict", "run", "--input", "x.npz", "--output", "p.npz"), "NaN")
    assert not (tmp_path / "p.npz").exists()
    np.savez("x.npz", x=np.zeros((3, 8, 8)))
    refused(vogn("predict", "run", "--input", "x.npz", "--output", "nowhere/p.npz"), "cannot write nowhere/p.npz")


def test_a_run_that_diverges_fails_with_1_and_says_what_to_do(vogn, tmp_path):
    np.savez("huge.npz", x_train=np.eye(12, 4), y_train=np.arange(12) % 3, x_test=np.eye(6, 4), y_test=np.arange(6) % 3)
    (tmp_path / "overflow.py").write_text(
        "import torch\n"
        "class Overflow(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x) * (1 if not self.training else float('inf'))\n"
        "def make(num_classes):\n"
        "    return Overflow(4, num_classes)\n"
    )
    arguments = ["--data", "npz:huge.npz", "--model", "overflow:make", "--method", "ivon", "--epochs", "1"]
    outcome = vogn("train", *arguments, "--output", "run")
    assert outcome.code == 1
    assert "training loss is nan in epoch 1, batch 1" in outcome.err and "lower --lr" in outcome.err
