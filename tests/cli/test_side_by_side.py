"""Runs of several contenders: a relative path of data holds wherever the run is taken up again."""

import json
import os

import pytest

SMALL = {
    "active": ["--method", "vogn", "--acquisition", "random", "--seeds", "1", "--rounds", "1",
               "--steps", "2"],
    "continual": ["--benchmark", "permuted-digits", "--method", "finetune", "--tasks", "2", "--epochs", "1"],
}  # fmt: skip


@pytest.mark.parametrize("command", SMALL)
def test_a_run_on_a_relative_path_goes_on_in_another_folder(vogn, tiny, tmp_path, monkeypatch, command):
    relative = f"npz:{os.path.relpath(tiny.removeprefix('npz:'), tmp_path)}"
    outcome = vogn(command, "--data", relative, *SMALL[command], "--hidden", "5", "--output", "run")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "run" / "results.json").read_text())["results"]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = vogn(command, "--resume", tmp_path / "run")
    assert again.code == 0, again.err
    assert json.loads((tmp_path / "run" / "results.json").read_text())["results"] == found
