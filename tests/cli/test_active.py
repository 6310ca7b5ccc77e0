"""`vogn active` end to end on tiny data sets."""

import json
import os
import signal
from contextlib import contextmanager

import numpy as np
import pytest

TINY = ["--hidden", "6", "--steps", "5", "--update-steps", "3", "--rounds", "3", "--initial", "4", "--query", "2",
        "--samples", "3", "--batch-size", "8"]  # fmt: skip


def results(folder):
    return json.loads((folder / "results.json").read_text())["results"]


def test_acquisitions_side_by_side_with_a_plot_and_json(vogn, tiny, tmp_path):
    options = ["--data", tiny, *TINY, "--seeds", "2", "--acquisition", "BALD,batchbald"]
    outcome = vogn("active", *options, "--output", "run")
    assert outcome.code == 0, outcome.err
    found = results(tmp_path / "run")
    assert list(found) == ["bald", "batchbald"] and [len(runs) for runs in found.values()] == [2, 2]
    last = np.mean([run["rows"][-1]["accuracy"] for run in found["bald"]])
    assert [row["labels"] for row in found["bald"][0]["rows"]] == [4, 6, 8]
    assert f"bald: accuracy {last:.4f} with 8 labels" in outcome.out
    assert found["bald"][0]["rows"][0] == found["batchbald"][0]["rows"][0]  # the same start
    assert (tmp_path / "run" / "accuracy.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert len((tmp_path / "run" / "bald" / "seed_1" / "labels.jsonl").read_text().splitlines()) == 8
    again = vogn("active", "--resume", "run")  # a finished run prints its table again
    assert again.code == 0 and results(tmp_path / "run") == found


def test_numbers_are_standardised_and_measured_by_rmse(vogn, tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3))
    y = 1000.0 + 50.0 * x[:, 0]
    np.savez(tmp_path / "line.npz", x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    options = ["--data", f"npz:{tmp_path / 'line.npz'}", "--target", "numbers", *TINY, "--seeds", "1", "--level", "0.9"]
    options += ["--initial", "20"]
    outcome = vogn("active", *options, "--acquisition", "information_gain,random", "--steps", "60", "--output", "run")
    assert outcome.code == 0, outcome.err
    found = results(tmp_path / "run")["information_gain"][0]["rows"]
    assert found[-1]["rmse"] < 0.9 and "labels for rmse 0.9" in outcome.out
    assert (tmp_path / "run" / "rmse.png").is_file()


def test_a_signal_ends_the_run_with_the_way_to_continue_it(vogn, tiny, tmp_path, monkeypatch):
    import vogn.cli.active as module

    options = ["active", "--data", tiny, *TINY, "--seeds", "2", "--acquisition", "random,entropy"]
    assert vogn(*options, "--output", "whole").code == 0

    @contextmanager
    def deadly(rounds, label):
        class Watcher:
            def asked(self, wanted, given):
                pass

            def step_done(self, done, total, loss):
                if label == "entropy, seed 0" and (done, total) == (2, 3):
                    os.kill(os.getpid(), signal.SIGTERM)

            def round_done(self, row):
                pass

        yield Watcher()

    with monkeypatch.context() as patch:
        patch.setattr(module, "progress_bar", deadly)
        outcome = vogn(*options, "--output", "run")
    assert outcome.code == 128 + signal.SIGTERM
    assert "entropy, seed 0: stopped in round 1, with 6 labels" in outcome.err
    command = outcome.err.split("Continue with: ")[1].split()
    assert command == ["vogn", "active", "--resume", "run"]
    assert vogn(*command[1:]).code == 0
    assert results(tmp_path / "run") == results(tmp_path / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--acquisition", "variance"], "allowed for labels"),
        (["--acquisition", "bald,bald"], "twice"),
        (["--method", "adam"], "unknown method"),
        (["--method", "ekfac", "--update", "prior"], "--update prior goes with"),
        (["--update", "never"], "unknown update"),
        (["--target", "numbers"], "--data npz:FILE"),
        (["--target", "words"], "unknown target"),
        (["--noise", "0.2"], "--noise goes with"),
        (["--rounds", "0"], "--rounds 0"),
        (["--lr", "-1"], "--lr -1"),
        (["--hidden", "a"], "whole numbers"),
        (["--resume", "nowhere", "--seeds", "1"], "excludes"),
        (["--resume", "nowhere"], "not a run folder"),
    ],
)
def test_bad_input_is_one_line(vogn, options, message):
    outcome = vogn("active", *options)
    assert outcome.code == 2 and message in outcome.err and "Traceback" not in outcome.err


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x_train": np.ones((3, 2)), "y_train": np.ones(3), "x_test": np.ones((3, 2))}, "no array y_test"),
        ({"y_train": np.array([1.0, np.nan, 0.0])}, "y_train is empty, or holds NaN"),
        ({"y_train": np.ones(2)}, "one number per input"),
    ],
)
def test_bad_numbers_are_named(vogn, tmp_path, arrays, message):
    whole = {"x_train": np.ones((3, 2)), "y_train": np.ones(3), "x_test": np.ones((3, 2)), "y_test": np.ones(3)}
    np.savez(tmp_path / "bad.npz", **(arrays if "x_train" in arrays else whole | arrays))
    options = ["--data", f"npz:{tmp_path / 'bad.npz'}", "--target", "numbers", "--acquisition", "random"]
    outcome = vogn("active", *options)
    assert outcome.code == 2 and message in outcome.err
