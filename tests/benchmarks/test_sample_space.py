"""The study in sample space: one tiny cell of every task on made-up data, its rules, and its messages."""

import argparse
import gzip
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
TASKS = ("mnist", "cifar10", "multi30k")


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with the files of all tasks."""
    image = pytest.importorskip("PIL.Image")
    folder, generator = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    labels = (np.arange(160) % 10).astype(np.uint8)
    parts = {"x_train": 128, "x_test": 32}
    digits = {key: generator.integers(0, 256, (n, 28, 28), dtype=np.uint8) for key, n in parts.items()}
    np.savez(folder / "mnist.npz", **digits, y_train=labels[:128], y_test=labels[:32])
    streams = {}
    for part, count in (("train", 128), ("test", 32)):
        files = []
        for pixels in generator.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8):
            buffer = io.BytesIO()
            image.fromarray(pixels).save(buffer, "JPEG")
            files.append(buffer.getvalue())
        streams[f"jpeg_{part}"] = np.frombuffer(b"".join(files), dtype=np.uint8)
        streams[f"offset_{part}"] = np.cumsum([0, *map(len, files)])
        streams[f"y_{part}"] = labels[:count]
    np.savez(folder / "cifar10_jpegbytes.npz", **streams)
    for name, count in (("train", 80), ("val", 40), ("test2016", 40)):
        chosen = generator.integers(0, 12, (count, 5))
        for language, prefix in (("en", "word"), ("de", "wort")):
            text = "\n".join(" ".join(f"{prefix}{k}" for k in row) + " ." for row in chosen) + "\n"
            (folder / f"multi30k_{name}.{language}.txt.gz").write_bytes(gzip.compress(text.encode()))
    return folder


def cell(data, tmp_path, task, method, configuration=0, seed=0):
    from benchmarks.sample_space.one_run import run_cell

    path = tmp_path / "smoke" / task / "runs" / f"{method}-{configuration}-{seed}.json"
    run_cell(
        argparse.Namespace(
            task=task, method=method, configuration=configuration, seed=seed, form="smoke", data_dir=data, cell=path
        )
    )
    return json.loads(path.read_text())


@pytest.mark.parametrize("method", ["fngd", "kfac", "adamw"])
@pytest.mark.parametrize("task", TASKS)
def test_cell_trains_and_records(data, tmp_path, task, method):
    if task == "multi30k":
        pytest.importorskip("sacrebleu")
    record = cell(data, tmp_path, task, method)
    assert not record["failure"]
    assert [point["epoch"] for point in record["curve"]] == [1, 2]
    assert record["curve"][1]["train_loss"] < record["curve"][0]["train_loss"]
    assert 0 < record["curve"][0]["cpu_seconds"] <= record["curve"][1]["cpu_seconds"] == record["cpu_seconds"]
    assert record["validation_loss"] == record["curve"][-1]["loss"]
    assert np.isfinite(record["test"]["loss"]) and record["test"][record["metric"]] >= 0


def test_fngd_measures_in_the_first_epoch_only(data):
    from benchmarks.sample_space.rows import ROWS, Run

    model = torch.nn.Linear(3, 2)
    optimizer = ROWS["fngd"].build(model, Run(examples=64, batch=16, steps=4), seed=0, lr=0.1, damping=1.0)
    assert optimizer.param_groups[0]["freeze_after"] == 4


def test_every_row_has_its_grid():
    from benchmarks.sample_space.rows import FIRST, ROWS

    assert set(FIRST) < set(ROWS)
    for name, row in ROWS.items():
        tasks = [task for task in TASKS if row.configurations(task)]
        own_epochs = any("epochs" in found for found in row.configurations("cifar10"))
        assert tasks == (["cifar10"] if name == "kfac-paper" or own_epochs else list(TASKS))
        for task in tasks:
            configurations = row.configurations(task)
            assert len({json.dumps(found, sort_keys=True) for found in configurations}) == len(configurations) >= 2


def test_step_times_are_ratios_to_the_baseline(data, tmp_path):
    from benchmarks.sample_space.step_time import run_step_time

    path = tmp_path / "step_time.json"
    run_step_time(argparse.Namespace(task="mnist", form="smoke", data_dir=data, cell=path))
    found = json.loads(path.read_text())["methods"]
    assert found["sgd"]["ratio"] == 1.0
    assert {"kfac", "fngd, coefficients kept", "fngd, coefficients measured"} < set(found)
    assert all(0 < line["quartiles"][0] <= line["ratio"] <= line["quartiles"][1] for line in found.values())


def test_rows_of_equal_time_have_their_own_epochs_and_tasks(data, tmp_path, capsys):
    from benchmarks.sample_space.__main__ import further_seeds, tuning
    from benchmarks.sample_space.report import report
    from benchmarks.sample_space.rows import ROWS

    record = cell(data, tmp_path, "cifar10", "sgd-kfac-time")
    assert record["epochs"] == len(record["curve"]) == ROWS["sgd-kfac-time"].configurations("cifar10")[0]["epochs"]
    cell(data, tmp_path, "cifar10", "sgd")
    options = {"form": "smoke", "curves": False, "reference": "sgd", "seeds": 0, "data_dir": data}
    arguments = argparse.Namespace(results=tmp_path, **options)
    report(arguments, ["cifar10"])
    assert "| sgd-kfac-time, 13 epochs |" in capsys.readouterr().out
    for stage in (tuning, further_seeds):
        assert not stage(arguments, ["mnist", "multi30k"], ["sgd-kfac-time"])
    assert len(tuning(arguments, ["mnist", "cifar10"], ["sgd-kfac-time"])) == 4


def test_report_takes_the_configuration_with_the_lowest_validation_loss(data, tmp_path, capsys):
    from benchmarks.sample_space.report import finished, report, summarise

    tuned = [cell(data, tmp_path, "mnist", "adamw", k) for k in range(3)]
    cell(data, tmp_path, "mnist", "sgd")
    best = min(tuned, key=lambda record: record["validation_loss"])
    root = tmp_path / "smoke" / "mnist"
    assert finished(root)["adamw"][0]["configuration"] == best["configuration"]
    lines = {line["method"]: line for line in summarise(root)["lines"]}
    assert lines["adamw"]["loss"][0] == best["test"]["loss"]
    assert lines["sgd"]["loss minus adamw"][0] == pytest.approx(lines["sgd"]["loss"][0] - best["test"]["loss"])
    report(argparse.Namespace(results=tmp_path, form="smoke", curves=False, reference="adamw"), ["mnist"])
    assert "accuracy % minus AdamW" in capsys.readouterr().out
    written = (root / "summary.json").read_text()
    report(argparse.Namespace(results=tmp_path, form="smoke", curves=False, reference="sgd"), ["mnist"])
    assert "accuracy % minus sgd" in capsys.readouterr().out
    assert (root / "summary.json").read_text() == written


def test_a_run_that_diverges_is_recorded(data, tmp_path, monkeypatch):
    from benchmarks.sample_space.rows import ROWS, Row

    wild = Row(ROWS["sgd"].build, {"all": ({"lr": 1e30},)})
    monkeypatch.setitem(ROWS, "wild", wild)
    record = cell(data, tmp_path, "mnist", "wild")
    assert "loss" in record["failure"]
    assert record["validation_loss"] == float("inf")


def test_a_configuration_that_fails_with_any_seed_is_passed_over(tmp_path, monkeypatch):
    from benchmarks.sample_space import __main__ as study
    from benchmarks.sample_space.report import finished
    from benchmarks.sample_space.rows import ROWS

    configurations = list(ROWS["sgd"].configurations("mnist"))

    def made(module, cells, **options):
        for path, words in cells:
            k, seed = (int(words[words.index(f"--{name}") + 1]) for name in ("configuration", "seed"))
            failure = "loss nan" if (k, seed) == (2, 3) else ""
            record = {"method": "sgd", "configuration": configurations[k], "seed": seed, "failure": failure}
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(record | {"validation_loss": [1.0, 0.5, 0.1, 0.7][k]}))
        return len(cells), 0

    monkeypatch.setattr(study, "run_cells", made)
    monkeypatch.setattr(study, "step_times", lambda *arguments: [])
    monkeypatch.setattr(study, "check_data", lambda *arguments: None)
    monkeypatch.setattr(study, "report", lambda *arguments: None)
    options = {"results": tmp_path, "form": "reduced", "tasks": "mnist", "methods": "sgd", "seeds": 0, "jobs": 1}
    assert study.run_study(argparse.Namespace(**options, data_dir=tmp_path, budget_minutes=0)) == 0
    taken = finished(tmp_path / "reduced" / "mnist")["sgd"]
    assert sorted(taken) == list(range(5))
    assert {json.dumps(record["configuration"]) for record in taken.values()} == {json.dumps(configurations[1])}


@pytest.mark.parametrize(("task", "file"), [("mnist", "mnist.npz"), ("multi30k", "multi30k_train.en.txt.gz")])
def test_missing_data_is_named(tmp_path, task, file):
    from benchmarks.sample_space.tasks import check_data

    with pytest.raises(SystemExit, match=file):
        check_data(task, tmp_path)


def test_unknown_rows_and_absent_methods_are_named(monkeypatch, capsys):
    from benchmarks.sample_space.__main__ import chosen_methods
    from benchmarks.sample_space.rows import ROWS, Row

    monkeypatch.setitem(ROWS, "absent", Row(ROWS["sgd"].build, ROWS["sgd"].grid, method="no_such_method"))
    assert chosen_methods(argparse.Namespace(methods="sgd,absent")) == ["sgd"]
    assert "absent skipped" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="unheard"):
        chosen_methods(argparse.Namespace(methods="unheard"))


def test_vocabulary_is_what_occurs_twice():
    from benchmarks.sample_space.text import BEGIN, END, PAD, UNKNOWN, Vocabulary, words

    sentences = [words("Ein Well-known Hund, ein Hund."), words("Hund.")]
    assert sentences[0] == ["ein", "well-known", "hund", ",", "ein", "hund", "."]
    vocabulary = Vocabulary.of(sentences, 10)
    assert vocabulary.words[4:] == ("hund", ".", "ein")
    assert Vocabulary.of(sentences, 1).words[4:] == ("hund",)
    numbers = vocabulary.numbers([["hund", "maus"], ["ein"]], target=True)
    assert numbers.tolist() == [[BEGIN, 4, UNKNOWN, END], [BEGIN, 6, END, PAD]]
    assert vocabulary.sentence(numbers[1, 1:].tolist()) == "ein"


def test_translator_sees_neither_padding_nor_the_future():
    from benchmarks.sample_space.translator import Translator

    torch.manual_seed(0)
    model = Translator(12, 8, 9).double().eval()
    source, target = torch.tensor([[4, 5, 6]]), torch.tensor([[1, 7, 8, 9]])
    logits = model(source, target)
    padded = torch.tensor([[4, 5, 6, 0, 0]])
    torch.testing.assert_close(model(padded, target), logits)
    other = target.clone()
    other[0, 3] = 10
    torch.testing.assert_close(model(source, other)[:, :3], logits[:, :3])
    assert not torch.allclose(model(source, other)[:, 3], logits[:, 3])
    found = model.translate(source, 5)
    assert found.shape[1] <= 5
    assert not bool(((found == 0) | (found == 1) | (found == 3)).any())
