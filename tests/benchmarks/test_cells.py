"""Cells run in processes of their own, or in kept ones: the same files, and a failure that is told."""

from __future__ import annotations

import time

import pytest

from benchmarks.cells import run_cells

STUDY = '''
import argparse, os, pathlib
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--cell", type=pathlib.Path)
    parser.add_argument("--value")
    arguments = parser.parse_args()
    if arguments.value == "bad":
        raise ValueError("this cell is bad")
    arguments.cell.write_text(f"{arguments.value} {os.environ['OMP_NUM_THREADS']} {os.getpid()}")
if __name__ == "__main__":
    main()
'''


@pytest.fixture
def study(tmp_path, monkeypatch):
    (tmp_path / "made_up_study").mkdir()
    (tmp_path / "made_up_study" / "__init__.py").touch()
    (tmp_path / "made_up_study" / "__main__.py").write_text(STUDY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # kept processes take it from here

    def run(values, **options):
        paths = [tmp_path / f"{value}.json" for value in values]
        cells = [(path, ["--value", value, "--cell", str(path)]) for path, value in zip(paths, values, strict=True)]
        return run_cells("made_up_study", cells, jobs=1, **({"deadline": None} | options)), paths

    return run


@pytest.mark.parametrize("kept", [False, True])
def test_every_cell_is_made_once(study, kept):
    (done, left), paths = study(["a", "b"], kept=kept)
    contents = [path.read_text().split() for path in paths]
    assert (done, left) == (2, 0) and [found[:2] for found in contents] == [["a", "1"], ["b", "1"]]
    assert (contents[0][2] == contents[1][2]) == kept  # one process, or two
    study(["a", "b"], kept=kept)
    assert [path.read_text().split() for path in paths] == contents


@pytest.mark.parametrize("kept", [False, True])
def test_no_cell_is_begun_after_the_deadline(study, kept):
    (done, left), _ = study(["a", "b"], kept=kept, deadline=time.monotonic() - 1.0)
    assert (done, left) == (0, 2)


@pytest.mark.parametrize("kept", [False, True])
def test_a_cell_that_fails_ends_the_study(study, kept):
    with pytest.raises((RuntimeError, ValueError), match="this cell is bad"):
        study(["bad"], kept=kept)
