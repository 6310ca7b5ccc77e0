"""The study of automatic settings: what it runs again, and what its table says of cells by another rule."""

import json

import numpy as np
import pytest
import torch

from benchmarks import auto_settings
from benchmarks.cells import write_cell

HAND = {"accuracy": 0.9, "lr": 0.1}


@pytest.fixture
def study(monkeypatch, tmp_path):
    """One row of two seeds, whose runs only tell what they were given."""
    given = []

    def classify(name, method, seed, directory):
        given.append((method, seed))
        return {"hand": HAND, "auto": {"accuracy": 0.8 + 0.1 * seed, "lr": 0.2}}

    monkeypatch.setattr(auto_settings, "classify", classify)
    monkeypatch.setattr(auto_settings, "METHODS", ("vogn",))
    monkeypatch.setattr(auto_settings, "SEEDS", dict.fromkeys(auto_settings.SEEDS, 2))

    def run():
        given.clear()
        monkeypatch.setattr("sys.argv", ["", "run", "--data", "digits", "--results", str(tmp_path)])
        assert auto_settings.main() == 0
        return list(given)

    return run, tmp_path


def cell(folder, seed, **more):
    write_cell(folder / f"digits-vogn-{seed}.json", {"hand": HAND, "auto": {"accuracy": 0.7, "lr": 0.3}} | more)


def test_cells_of_another_rule_are_run_again(study):
    run, folder = study
    cell(folder, 0, rule=auto_settings.IMAGE_RULE)
    cell(folder, 1, rule="another")
    assert run() == [("vogn", 1)]
    found = json.loads((folder / "digits-vogn-1.json").read_text())
    assert found["auto"]["accuracy"] == 0.9 and found["rule"] == auto_settings.IMAGE_RULE
    assert run() == []


def test_the_table_marks_rows_by_an_earlier_rule(study, capsys):
    run, folder = study
    cell(folder, 0)
    cell(folder, 1, rule=auto_settings.IMAGE_RULE)
    auto_settings.report(folder)
    assert "| digits, vogn (1 of 2 by an earlier rule) | 90.00 % | 70.00 % | -20.00" in capsys.readouterr().out
    run()
    out = capsys.readouterr().out
    assert "| digits, vogn | 90.00 % | 75.00 % | -15.00" in out and "earlier" not in out


def test_what_longer_runs_changed_is_counted(tmp_path, capsys):
    trials = [[0.1, 0.2, 1.0], [0.1, 0.6, 0.9], [0.1, 0.06, 0.9], [1.0, 0.5, 0.8], [1.0, 0.2, 1.1]]
    for seed, chosen in enumerate((1, 3, 3)):
        damping, rate, _ = trials[chosen]
        auto = {"accuracy": 0.9, "damping": damping, "lr": rate, "finals": trials}
        write_cell(tmp_path / f"digits-vogn-{seed}.json", {"hand": HAND, "auto": auto})
    auto_settings.finals(tmp_path)
    assert "| digits, vogn | 3 | 1e-01 | 0 | 1 | 0 | 2 | 0 | 0 |" in capsys.readouterr().out


def test_perceptrons_run_several_times_after_one_search(monkeypatch, tmp_path):
    """Both ways with further seeds at the settings that are known; a cell that has its search is not searched again."""
    calls = []

    def regress(method, seed, x, y, x_test, y_test, configuration, searched=None):
        calls.append((seed, configuration, searched))
        return {"lr": 0.5, "damping": 0.01, "rmse": 1.0 + seed} if searched is None else {"rmse": 2.0 + seed / 1000}

    class Rows:
        x, y, scale = np.zeros((4, 2)), torch.zeros(4), 3.0

    monkeypatch.setattr(auto_settings, "split", lambda *_, **__: (Rows, Rows))
    monkeypatch.setattr(auto_settings, "hand_tuned", lambda *_: {"lr": 0.1, "prior": 1.0})
    monkeypatch.setattr(auto_settings, "regress", regress)
    found = auto_settings.regressions("yacht", "vogn", 2, tmp_path, tmp_path, {})
    settings = {"lr": 0.5, "damping": 0.01}
    assert [call for call in calls if call[1] is None] == [
        (2, None, None), *((2 + 1000 * k, None, settings) for k in range(1, 5))
    ]  # fmt: skip
    assert found["auto"]["rmses"] == pytest.approx([9.0, *(3.0 * (3.002 + k - 1) for k in range(1, 5))])
    assert found["auto"]["rmse"] == pytest.approx(np.mean(found["auto"]["rmses"])) and found["auto"]["lr"] == 0.5
    calls.clear()
    again = auto_settings.regressions("yacht", "vogn", 2, tmp_path, tmp_path, {"auto": {**settings, "rmse": 9.0}})
    assert again["auto"]["rmses"] == found["auto"]["rmses"] and (2, None, None) not in calls
