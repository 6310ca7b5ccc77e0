"""The study against NUTS: a tiny reference and tiny cells; what the report averages."""

import json
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture
def arguments(tmp_path):
    """Parsed options of a smoke run, and data."""
    import argparse

    generator = np.random.default_rng(0)
    for name in ("yacht", "energy", "boston", "concrete"):
        x = generator.normal(size=(260, 2))
        np.savez(tmp_path / f"uci_{name}.npz", X=x, y=x[:, 0] + 0.1 * generator.normal(size=260))

    def make(**options):
        return argparse.Namespace(form="smoke", data_dir=tmp_path, results=tmp_path / "results", **options)

    return make


def test_a_reference_and_cells_of_every_kind(arguments, capsys):
    from benchmarks.nuts.one_run import reference_path, run_method, run_reference
    from benchmarks.nuts.report import report
    from benchmarks.nuts.sizes import folder

    given = arguments(data="yacht", jobs=1)
    with pytest.raises(SystemExit, match="reference"):
        run_method(arguments(data="yacht", method="kfac", cell=Path("unused.json")))
    run_reference(arguments(data="yacht", cell=reference_path(given, "yacht")))
    for method in ("kfac", "bbb", "laplace-dense"):
        path = folder(given, "yacht") / f"{method}.json"
        run_method(arguments(data="yacht", method=method, cell=path))
        record = json.loads(path.read_text())
        assert record["runs"][0]["rate"] in [run["rate"] for run in record["tried"]]
        best = max(run["objective"] for run in record["tried"])
        assert record["runs"][0]["objective"] == best
    report(given)
    text = capsys.readouterr().out
    assert "| kfac |" in text and "| bbb |" in text and "mean over" not in text


def test_references_that_have_not_mixed_are_not_averaged(arguments, capsys):
    from benchmarks.cells import write_cell
    from benchmarks.nuts.one_run import reference_path
    from benchmarks.nuts.report import report
    from benchmarks.nuts.rows import ROWS
    from benchmarks.nuts.sizes import NOISE, folder

    given = arguments()
    for number, data in enumerate(NOISE):
        reference = {"parameters": 9, "r_hat": 1.3 if data == "energy" else 1.01, "effective_samples": 100.0}
        reference |= {"divergences": 0, "draws": 10, "ceiling": 0.9, "cpu_seconds": 1.0}
        write_cell(reference_path(given, data), reference)
        for method in ROWS:
            run = {name: [0.1 * number] for name in ("variance_correlation", "std_correlation", "variance_ratio")}
            run |= {"mean_error": [0.5], "coverage": {level: [0.5] for level in ("0.5", "0.9", "0.95")}}
            write_cell(folder(given, data) / f"{method}.json", {"runs": [run]})
    report(given)
    text = capsys.readouterr().out
    assert "mean over yacht, boston, concrete" in text
    mean = text.split("mean over")[1]
    assert "| kfac | 0.17 ±" in mean  # (0 + .2 + .3) / 3
