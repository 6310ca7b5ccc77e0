"""The study of automatic settings: what it runs again, and what its table says of cells by another rule."""

import json

import numpy as np
import pytest
import torch

from benchmarks.auto_settings import __main__ as program
from benchmarks.auto_settings import cells
from benchmarks.auto_settings.report import finals, report
from benchmarks.auto_settings.sizes import IMAGE_RULE, RUNS, SEEDS
from benchmarks.cells import write_cell

SETTINGS = {"lr": 0.5, "damping": 0.01}


@pytest.fixture
def study(monkeypatch, tmp_path):
    """One row of two seeds, whose runs only tell what they were given."""
    given = []

    def classify(name, method, split, seed, directory, configuration, searched=None):
        given.append((split, seed, configuration is not None, searched))
        if configuration is not None:
            return {"accuracy": 0.9, "lr": 0.1}
        return {"accuracy": 0.8 + 0.1 * split - seed / 1e5, **SETTINGS, "ess_factor": 3.0}

    monkeypatch.setattr(cells, "classify", classify)
    monkeypatch.setattr(cells, "METHODS", ("vogn",))
    for name in ("cells", "report"):
        monkeypatch.setattr(f"benchmarks.auto_settings.{name}.SEEDS", dict.fromkeys(SEEDS, 2))

    def run():
        given.clear()
        monkeypatch.setattr("sys.argv", ["", "run", "--data", "digits", "--results", str(tmp_path)])
        assert program.main() == 0
        return list(given)

    return run, tmp_path


def cell(folder, seed, **more):
    hand, auto = ({"accuracy": score, "lr": 0.1, "scores": [score]} for score in (0.9, 0.7))
    write_cell(folder / f"digits-vogn-{seed}.json", {"hand": hand, "auto": auto} | more)


def test_cells_of_another_rule_are_run_again(study):
    """Their automatic runs, that is: what was run by hand is kept."""
    run, folder = study
    cell(folder, 0, rule=IMAGE_RULE)
    cell(folder, 1, rule="another")
    known = SETTINGS | {"ess_factor": 3.0}
    assert run() == [(1, 1, False, None), (1, 1001, False, known), (1, 2001, False, known)]
    found = json.loads((folder / "digits-vogn-1.json").read_text())
    assert found["auto"]["scores"] == pytest.approx([0.9 - k / 1e5 for k in (1, 1001, 2001)])
    assert found["auto"]["accuracy"] == pytest.approx(0.9 - 1001 / 1e5) and found["rule"] == IMAGE_RULE
    assert found["hand"]["scores"] == [0.9]
    assert run() == []


def test_the_table_marks_rows_by_an_earlier_rule(study, capsys):
    run, folder = study
    cell(folder, 0)
    cell(folder, 1, rule=IMAGE_RULE)
    report(folder)
    assert "| digits, vogn (1 of 2 by an earlier rule) | 90.00 % | 70.00 % | -20.00" in capsys.readouterr().out
    run()
    out = capsys.readouterr().out
    assert "| digits, vogn | 90.00 % | 74.50 % | -15.50" in out and "earlier" not in out


def test_what_longer_runs_changed_is_counted(tmp_path, capsys):
    trials = [[0.1, 0.2, 1.0], [0.1, 0.6, 0.9], [0.1, 0.06, 0.9], [1.0, 0.5, 0.8], [1.0, 0.2, 1.1]]
    for seed, chosen in enumerate((1, 3, 3)):
        damping, rate, _ = trials[chosen]
        auto = {"accuracy": 0.9, "damping": damping, "lr": rate, "finals": trials}
        write_cell(tmp_path / f"digits-vogn-{seed}.json", {"hand": {}, "auto": auto})
    finals(tmp_path)
    assert "| digits, vogn | 3 | 1e-01 | 0 | 1 | 0 | 2 | 0 | 0 |" in capsys.readouterr().out


def test_perceptrons_run_several_times_after_one_search(monkeypatch, tmp_path):
    """Both ways with further seeds at the settings that are known; a cell that has its search is not searched again."""
    calls = []

    def regress(method, seed, x, y, x_test, y_test, configuration, searched=None):
        calls.append((seed, configuration, searched))
        if configuration is not None:
            return {"lr": 0.1, "rmse": 1.0}
        return SETTINGS | {"rmse": 1.0 + seed} if searched is None else {"rmse": 2.0 + seed / 1000}

    class Rows:
        x, y, scale = np.zeros((4, 2)), torch.zeros(4), 3.0

    monkeypatch.setattr(cells, "split", lambda *_, **__: (Rows, Rows))
    monkeypatch.setattr(cells, "hand_tuned", lambda *_: {"lr": 0.1, "prior": 1.0})
    monkeypatch.setattr(cells, "regress", regress)
    found = cells.regressions("yacht", "vogn", 2, tmp_path, tmp_path, {})
    others = [2 + 1000 * k for k in range(1, RUNS["yacht"])]
    automatic = [call for call in calls if call[1] is None]
    assert automatic == [(2, None, None), *((seed, None, SETTINGS) for seed in others)]
    assert found["auto"]["scores"] == pytest.approx([9.0, *(3.0 * (2.0 + seed / 1000) for seed in others)])
    assert found["auto"]["rmse"] == pytest.approx(np.mean(found["auto"]["scores"])) and found["auto"]["lr"] == 0.5
    assert found["hand"]["scores"] == [3.0] * RUNS["yacht"]
    calls.clear()
    again = cells.regressions("yacht", "vogn", 2, tmp_path, tmp_path, {"auto": {**SETTINGS, "rmse": 9.0}})
    assert again["auto"]["scores"] == found["auto"]["scores"] and (2, None, None) not in calls
