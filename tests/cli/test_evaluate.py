"""``vogn evaluate``: figures, pictures and the page of a run, and what it refuses."""

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

TINY = ["--epochs", "1", "--batch-size", "30", "--model", "mlp", "--samples", "3", "--device", "cpu"]


@pytest.fixture
def run(vogn, tiny):
    """A run alone."""
    outcome = vogn("train", "--data", tiny, *TINY, "--output", "run")
    assert outcome.code == 0, outcome.err
    return tiny


@pytest.fixture
def compared(vogn, tiny):
    """A run with its contenders."""
    outcome = vogn("train", "--data", tiny, *TINY, "--compare", "--output", "run")
    assert outcome.code == 0, outcome.err
    return tiny


def refused(outcome, *words):
    assert outcome.code == 2 and len(outcome.err.strip().splitlines()) == 1 and "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err


def test_everything_is_measured_and_written(vogn, compared, tmp_path):
    generator = np.random.default_rng(1)
    np.savez("other.npz", x_train=generator.normal(size=(30, 16, 16)) * 3, y_train=np.arange(30) % 5)
    before = json.loads((tmp_path / "run" / "results.json").read_text())["test"]
    outcome = vogn("evaluate", "run", "--ood", "npz:other.npz", "--shift", "--report", "--bootstrap", "20")
    assert outcome.code == 0, outcome.err
    folder = tmp_path / "run" / "evaluation"
    found = json.loads((folder / "metrics.json").read_text())
    assert list(found["rows"]) == [f"{row['label']}, {row['how']}" for row in before]
    for row in before:
        measured = found["rows"][f"{row['label']}, {row['how']}"]
        assert measured["nll"] == pytest.approx(row["nll"]) and measured["ece"] == pytest.approx(row["ece"], abs=1e-6)
        assert set(measured["intervals"]) == {"accuracy", "nll", "brier", "debiased_ece", "aurc"}
    assert found["reference"] == "vogn, variational, 3 samples" and len(found["nll_minus_reference"]) == 3
    assert found["changes"] == {"npz:other.npz": ["resized from 16 x 16 to 8 x 8 pixels"]}
    assert found["outside"]["npz:other.npz"]["AdamW, mean"]["outside"] == 30  # a source without a test part
    assert set(found["shift"]["corruptions"]) == {"blur", "contrast", "gaussian_noise", "rotation"}
    assert found["part"] == "test" and found["versions"]["torch"].startswith("2.")
    assert sorted(path.name for path in folder.glob("*.png")) == sorted(found["pictures"])
    assert {"reliability.png", "risk_coverage.png", "learning_curves.png", "shift_ece.png"} <= set(found["pictures"])
    page = (folder / "report.html").read_text("utf-8")
    assert "AdamW, mean" in page and "resized from 16 x 16" in page and "vogn evaluate" in page
    for words in ("resized from 16 x 16 to 8 x 8 pixels", "AUROC, npz:other.npz", "ECE under corruption"):
        assert words in outcome.out


def test_auroc_is_that_of_the_predictions(vogn, run, tmp_path):
    from vogn.cli.commands import load_session
    from vogn.cli.evaluation import predictive
    from vogn.data import load_other

    np.savez("other.npz", x=np.random.default_rng(1).normal(size=(15, 8, 8)))
    assert vogn("evaluate", "run", "--ood", "npz:other.npz", "--bootstrap", "0").code == 0
    session = load_session(tmp_path / "run", device="cpu")
    strange, _ = load_other("npz:other.npz", session.data.preprocessing)
    entropies = [predictive(session, x, samples=3).total for x in (session.data.test.x, strange)]
    truth = [0] * 20 + [1] * 15
    found = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())["outside"]["npz:other.npz"]
    auroc = found["vogn, variational, 3 samples"]["scores"]["entropy"]["auroc"]
    assert auroc == pytest.approx(roc_auc_score(truth, torch.cat(entropies)))


def test_pictures_of_an_earlier_evaluation_go_and_other_files_stay(vogn, run, tmp_path):
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "mine.png").write_bytes(b"x")
    more = ["--ood", run, "--report"]
    assert vogn("evaluate", "run", *more, "--output", "kept", "--bootstrap", "0").code == 0
    assert list(folder.glob("ood_*")) and (folder / "report.html").exists()
    assert vogn("evaluate", "run", "--output", "kept", "--bootstrap", "0").code == 0
    assert not list(folder.glob("ood_*")) and not (folder / "report.html").exists()
    assert (folder / "mine.png").read_bytes() == b"x" and (folder / "reliability.png").exists()


def test_contenders_that_are_not_there_are_named(vogn, compared, tmp_path):
    shutil.rmtree(tmp_path / "run" / "compare-adamw")
    outcome = vogn("evaluate", "run", "--bootstrap", "0")
    assert outcome.code == 0 and "AdamW has not been trained" in outcome.out
    assert len(json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())["rows"]) == 3


def test_bad_input(vogn, run, tmp_path):
    np.savez("flat.npz", x=np.zeros((3, 7)))
    np.savez("bytes.npz", x=np.zeros((3, 8, 8), np.uint8))
    refused(vogn("evaluate", "run", "--ood", "npz:flat.npz"), "(7,)", "(1, 8, 8)")
    refused(vogn("evaluate", "run", "--ood", "npz:bytes.npz"), "holds uint8", "same units")
    refused(vogn("evaluate", "run", "--ood", "mnist"), "unknown data 'mnist'", "npz:FILE")
    refused(vogn("evaluate", "run", "--ood", "npz:nowhere.npz"), "no such file")
    refused(vogn("evaluate", "run", "--ood", "digits", "--ood", "digits"), "more than once")
    refused(vogn("evaluate", "run", "--bootstrap", "1"), "--bootstrap is 1", "at least 2")
    refused(vogn("evaluate", "run", "--output", "run"), "--output is the folder of the run")
    (tmp_path / "file").write_text("")
    refused(vogn("evaluate", "run", "--output", "file"), "file")
    assert not (tmp_path / "run" / "evaluation").exists()


def test_features_have_no_shift(vogn, tmp_path):
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 3
    np.savez("flat.npz", x_train=generator.normal(size=(80, 5)) + labels[:, None], y_train=labels)
    assert vogn("train", "--data", "npz:flat.npz", *TINY, "--output", "run").code == 0
    refused(vogn("evaluate", "run", "--shift"), "--shift is for images", "(5,)")
    assert vogn("evaluate", "run", "--bootstrap", "0").code == 0


def test_narrow_terminals_get_more_tables_and_whole_numbers(vogn, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    outcome = vogn("evaluate", "run", "--bootstrap", "0")
    assert all(len(line) <= 80 for line in outcome.out.splitlines()[1:-1])
    assert sum("vogn, variational, mean" in line for line in outcome.out.splitlines()) >= 2
    assert "…" not in outcome.out
