"""The studies of exploration: every cell runs at a small size, and the grid is chosen with seed 0."""

import importlib
import json
import sys
from pathlib import Path

import pytest

CELLS = {
    ("bandits", "breast-cancer", "vogn"): 0.03,
    ("deep_sea", "linear-10", "vogn"): 0.05,
    ("vime", "mountain-car", "vime, Kronecker"): 0.07,
    ("acktr", "CartPole-v1", "acktr, shared"): 0.02,
    ("control", "CartPole-v1", "vogn"): 0.11,
    ("ddpg", "Pendulum-v1", "posterior"): 0.07,
}


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))


@pytest.mark.parametrize(("study", "case", "agent"), CELLS)
def test_cell_has_the_figures_of_its_table(study, case, agent, tmp_path):
    found = importlib.import_module(f"benchmarks.rl.{study}").STUDY
    options = found.grids[agent][0]
    scale = CELLS[study, case, agent]
    figures = found.cell({"case": case, "agent": agent, "options": options, "seed": 1, "scale": scale}, tmp_path)
    assert set(found.figures) | {found.score, "curve"} <= set(figures)
    assert set(found.usual) <= set(found.cases) and set(found.agents) <= set(found.grids)


def fake(settings, folder):
    value = settings["options"].get("x", 5) + settings["seed"]
    return {"loss": float(value), "curve": [1.0, float(value)]}


def test_options_are_chosen_with_seed_0_and_the_others_are_reported(tmp_path, monkeypatch, capsys):
    from benchmarks.rl.study import Study

    grids = {"a": [{"x": 3}, {"x": 1}, {"x": 2}], "b": [{}]}
    study = Study("A study.", "benchmarks.rl.fake", grids, {"c": {}, "d": {}}, ("c",), fake, "loss", ("loss",))
    arguments = ["run", "--results", str(tmp_path), "--seeds", "1", "2"]
    monkeypatch.setattr(sys, "argv", ["study", *arguments])
    study.main()
    rows = json.loads((tmp_path / "summary.json").read_text())["cases"]["c"]
    assert rows["a"]["options"] == {"x": 1} and rows["a"]["each"]["loss"] == [2.0, 3.0]
    assert rows["a"]["loss"] == [2.5, 0.5] and rows["b"]["loss"] == [6.5, 0.5]
    assert (tmp_path / "curves.png").is_file() and "| a | 2.5 ± 0.5 |" in capsys.readouterr().out
    assert len(list((tmp_path / "c").glob("*.json"))) == 3 + 4  # finished cells are not run again
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*.json")}
    study.main()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "c").glob("*.json")} == before
    # what is not asked for stays as it was; runs of another length have cells of their own
    monkeypatch.setattr(sys, "argv", ["study", *arguments, "--cases", "d", "--agents", "b", "--scale", "0.5"])
    study.main()
    cases = json.loads((tmp_path / "summary.json").read_text())["cases"]
    assert cases["c"] == rows and list(cases["d"]) == ["b"] and cases["d"]["b"]["scale"] == 0.5
    assert all("scale0.5" in path.name for path in (tmp_path / "d").glob("*.json"))


def test_curves_are_means_of_the_last_twenty_episodes():
    from benchmarks.rl.study import returns_over_steps, thinned

    episodes = [[10.0 * (n + 1), float(n), 10.0] for n in range(40)]
    found = returns_over_steps(episodes, 400, points=4)
    assert found == [sum(range(10)) / 10, sum(range(20)) / 20, sum(range(10, 30)) / 20, sum(range(20, 40)) / 20]
    assert thinned(list(range(100)), 5) == [0.0, 25.0, 50.0, 74.0, 99.0]
