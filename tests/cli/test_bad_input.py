"""Bad input ends in one clear line and exit code 2, without a traceback and without half a run."""

import json
import os
import shlex

import numpy as np
import pytest
import torch

SMALL = ["--batch-size", "30", "--model", "mlp", "--device", "cpu"]
TINY = ["--epochs", "1", "--samples", "2", *SMALL]


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


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--seed", str(2**63)], ["--seed is 9223372036854775808", "at most"]),
        (["--batch-size", str(2**70)], ["--batch-size is", "at most"]),
        (["--temperature", "1e-320"], ["effective sample size is inf"]),
        (["--prior-precision", "1e300"], ["prior precision / effective sample size", "too large"]),
        (["--ess", "1e-300"], ["prior precision / effective sample size", "too large"]),
        (["--device", "meta"], ["--device meta cannot be used here"]),
        (["--model", ""], ["unknown model ''"]),
        (["--image-size", "12"], ["--image-size is for image files"]),
        (["--output", "x" * 300], ["cannot create", "File name too long"]),
        (["--width", "10000000000000"], ["--width is", "at most"]),
        (["--warmup-epochs", "1e308"], ["--warmup-epochs is 1e+308", "at most"]),
        (["--steps", "100000000000"], ["--steps is 100000000000", "at most 1000000"]),
    ],
)
def test_numbers_and_names_beyond_reason(vogn, tiny, tmp_path, options, words):
    command = ["tune", *SMALL] if "--steps" in options else ["train", *TINY]
    refused(vogn(*command, "--data", tiny, "--output", "run", *options), *words)
    assert not (tmp_path / "run").exists()


MODELS = {
    "syntax": ("def make(:", ["cannot be built", "SyntaxError"]),
    "crash": ("raise RuntimeError('boom')", ["cannot be built", "RuntimeError: boom"]),
    "leave": ("import sys; sys.exit('bye')", ["cannot be built", "SystemExit: bye"]),
    "key": ("def make(): return {}['weights']", ["cannot be built", "KeyError: 'weights'"]),
    "lost": ("def make(): open('/nowhere/w.pt')", ["cannot be built", "FileNotFoundError"]),
    "empty": ("class make(nn.Module):\n  def forward(self, x): return x.flatten(1)[:, :3]", ["has no parameters"]),
    "frozen": ("def make(): return net().requires_grad_(False)", ["do not depend on any parameter"]),
    "evaluated": (
        "class make(nn.Module):\n  def __init__(self):\n    super().__init__()\n    self.net = net()\n"
        "  def forward(self, x):\n    assert not self.training, 'only for evaluation'\n    return self.net(x)",
        ["fails in training on a batch of 30: only for evaluation"],
    ),
    "complex": (
        "class make(nn.Linear):\n  def __init__(self): super().__init__(64, 3, dtype=torch.complex64)\n"
        "  def forward(self, x): return super().forward(x.flatten(1).to(torch.complex64)).real",
        ["cannot train model", "torch.complex64"],
    ),
}


@pytest.mark.parametrize("command", ["train", "tune"])
@pytest.mark.parametrize("name", MODELS)
def test_models_that_cannot_be_trained(vogn, tiny, tmp_path, name, command):
    source, words = MODELS[name]
    head = "import torch\nfrom torch import nn\ndef net(): return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))\n"
    (tmp_path / f"model_{name}.py").write_text(head + source + "\n")
    arguments = [command, "--data", tiny, *SMALL, "--model", f"model_{name}:make", "--output", "run"]
    refused(vogn(*arguments), f"model_{name}:make", *words)
    assert not (tmp_path / "run").exists()


def test_batch_norm_over_single_values_is_refused_before_anything_is_written(vogn, tmp_path):
    x, y = np.random.default_rng(0).normal(size=(12, 2, 2)), np.arange(12) % 3
    np.savez("small.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    arguments = ["train", "--data", "npz:small.npz", "--model", "resnet8", "--width", "2", "--batch-size", "1"]
    refused(vogn(*arguments, "--output", "run"), "fails in training on a batch of 1", "more than 1 value per channel")
    assert not (tmp_path / "run").exists()


def test_one_changed_byte_in_a_checkpoint_is_noticed(vogn, run):
    path = run / "checkpoint.pt"
    weights = next(iter(torch.load(path, weights_only=True)["model_state"].values())).numpy().tobytes()
    content = bytearray(path.read_bytes())
    place = content.index(weights)
    content[place + 5] ^= 1
    path.write_bytes(bytes(content))
    refused(vogn("evaluate", "run"), "is damaged or is not a checkpoint", "checksum")


def test_a_position_that_no_run_can_have_is_refused(vogn, run):
    path = run / "checkpoint.pt"
    sound = torch.load(path, weights_only=True)
    changes = [{"epoch": "x"}, {"epoch": -1}, {"epoch": 0.5}, {"batch": 1, "seen": 0}]
    for change in changes:
        torch.save(sound | {"position": sound["position"] | change}, path)
        refused(vogn("train", "--resume", "run"), "does not fit this model", "no run has the position")
    torch.save(sound | {"optimizer_state": None}, path)
    refused(vogn("evaluate", "run"), "does not fit this model")


def test_settings_of_another_type_are_refused(vogn, run):
    path = run / "config.json"
    config = json.loads(path.read_text())
    wrong = [("data", 5), ("epochs", 1.5), ("epochs", True), ("method", ["vogn"]), ("device", None), ("samples", 2.5)]
    for name, value in [*wrong, ("variational", "no"), ("augment", None), ("lr", "0.1"), ("seed", 0.5)]:
        path.write_text(json.dumps(config | {"settings": config["settings"] | {name: value}}))
        refused(vogn("evaluate", "run"), "does not hold the settings", f"--{name} is {value!r}; it must be")


@pytest.mark.parametrize("content", [b"5\n", b"null\n", b"[]\n", b'{"epoch": "x"}\n', b"\xff\xfe\x00", b"{}\n"])
def test_damaged_metrics_do_not_keep_a_run_from_going_on(vogn, run, content):
    whole = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(whole + content)
    assert vogn("train", "--resume", "run").code == 0
    assert (run / "metrics.jsonl").read_bytes() == whole


@pytest.mark.parametrize("temperature", [-1.0, 0.0, float("nan")])
def test_an_impossible_temperature_of_prediction_is_damage(vogn, run, temperature):
    path = run / "prediction.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": temperature}))
    refused(vogn("evaluate", "run"), "prediction.json is damaged", "delete it")


def test_weights_that_are_not_finite_are_no_prediction(vogn, run, tmp_path):
    path = run / "checkpoint.pt"
    sound = torch.load(path, weights_only=True)
    broken = {name: torch.full_like(value, torch.nan) for name, value in sound["model_state"].items()}
    torch.save(sound | {"model_state": broken}, path)
    np.savez("x.npz", x=np.zeros((3, 8, 8)))
    for command in (["evaluate", "run"], ["predict", "run", "--input", "x.npz", "--output", "p.npz"]):
        outcome = vogn(*command)
        assert outcome.code == 1 and "are not finite: its training diverged" in outcome.err
    assert not (tmp_path / "p.npz").exists()


def test_what_cannot_be_written_is_one_line(vogn, run):
    (run / "results.json").unlink()
    (run / "results.json").mkdir()
    refused(vogn("train", "--resume", "run"), "Is a directory", "results.json")


def test_another_data_set_has_the_same_classes_in_the_same_order(vogn, tmp_path):
    image = pytest.importorskip("PIL.Image")
    for root, classes in (("one", ("cat", "dog")), ("two", ("ant", "cat"))):
        for name in classes:
            (tmp_path / root / name).mkdir(parents=True)
            for number in range(10):
                image.new("L", (8, 8), 20 * number).save(tmp_path / root / name / f"{number}.png")
    assert vogn("train", "--data", "imagefolder:one", *TINY, "--batch-size", "5", "--output", "run").code == 0
    assert vogn("evaluate", "run", "--data", "imagefolder:one").code == 0
    refused(vogn("evaluate", "run", "--data", "imagefolder:two"), "class-name mismatch", "'ant' where the run has")


def test_only_one_process_trains_in_a_folder(vogn, run):
    from vogn.cli.run_folder import RunFolder

    with RunFolder(run).locked():
        refused(vogn("train", "--resume", "run"), "another process is training in run")
        assert vogn("evaluate", "run").code == 0
    assert vogn("train", "--resume", "run").code == 0


def test_names_with_brackets_and_spaces_are_printed_as_they_are(vogn, tiny, run):
    odd = tiny.removeprefix("npz:").replace("tiny", "t[red]iny")
    os.rename(tiny.removeprefix("npz:"), odd)
    outcome = vogn("train", "--data", f"npz:{odd}", *TINY, "--output", "my [bold] run/[/y]")
    assert outcome.code == 0 and "Everything is in my [bold] run/[/y]" in outcome.out and "t[red]iny" in outcome.out
    refused(vogn("train", "--data", f"npz:{odd}", *TINY, "--output", "my [bold] run/[/y]"), "'my [bold] run/[/y]'")
    tuned = vogn("tune", "--data", f"npz:{odd}", *SMALL, "--steps", "20", "--no-runs", "--output", "[b] tune/[/y]")
    assert tuned.code == 0 and "Everything is in [b] tune/[/y]" in tuned.out
    words = shlex.split(tuned.out.strip().splitlines()[-1])
    assert words[:4] == ["vogn", "train", "--data", f"npz:{odd}"]


def test_ctrl_c_before_training_exits_with_130(vogn, tiny, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("vogn.cli.commands.open_data", interrupted)
    outcome = vogn("train", "--data", tiny, *TINY, "--output", "run")
    assert outcome.code == 130 and outcome.err == "Interrupted\n"
