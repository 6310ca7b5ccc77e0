"""The study of digits: tables of benchmarks that were not asked for stay."""

import argparse
import json

from benchmarks import continual


def test_a_report_of_one_benchmark_keeps_the_others(tmp_path, monkeypatch, capsys):
    row = {"options": {"strength": 1.0}, "average_accuracy": [0.9, 0.01], "backward_transfer": [-0.1, 0.02],
           "cpu s": [2.0, 0.0], "curve": [[0.95, 0.01], [0.9, 0.01]]}  # fmt: skip
    arguments = argparse.Namespace(results=tmp_path, seeds=[1, 2, 3])
    for benchmark in ("permuted", "split"):
        monkeypatch.setattr(continual, "summary", lambda _, name=benchmark: {"benchmarks": {name: {"ewc": row}}})
        continual.report(arguments)
        assert "90.0 ± 1.0" in capsys.readouterr().out and (tmp_path / f"{benchmark}.png").is_file()
    found = json.loads((tmp_path / "summary.json").read_text())["benchmarks"]
    assert found == {"permuted": {"ewc": row}, "split": {"ewc": row}}
