"""The roofline of the kernels: what is counted, and the file that one round on the CPU leaves."""

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("VOGN_KERNELS", raising=False)
    from benchmarks import kernels

    return kernels


def test_every_kernel_is_measured_against_the_ceilings(study, tmp_path, capsys):
    study.main(["--device", "cpu", "--rounds", "1", "--scale", "0", "--results", str(tmp_path)])
    record = json.loads((tmp_path / "cpu.json").read_text())
    assert set(record["kernels"]) == {op for op, table in study.TABLE.items() if "triton" in table}
    ceilings = record["ceilings"]
    for row in record["kernels"].values():
        rate = ceilings[f"{row['precision']}_operations_per_second"]
        times = (row["bytes"] / ceilings["copy_bytes_per_second"], row["operations"] / rate)
        assert row["roofline_ms"] == pytest.approx(1e3 * max(times))
        assert row["achieved_fraction"] == pytest.approx(row["roofline_ms"] / row["measured_ms"])
        assert row["bound_by"] == ("memory" if times[0] >= times[1] else "arithmetic")
        assert row["backend"] == "reference"
    used = {"diagonal_step", "symmetric_update", "eigenbasis_solve", "patch_factor", "fill_normal"}
    assert {op for op, row in record["kernels"].items() if "own_ms" in row} == used
    assert capsys.readouterr().out.count("achieved") == len(record["kernels"])


def test_what_optimizers_run_without_a_kernel_computes_the_same(study):
    for op in ("diagonal_step", "symmetric_update", "eigenbasis_solve", "patch_factor"):
        work = study.WORKS[op](torch.device("cpu"), 0)
        found, expected = work.own(), work.call()
        if op == "diagonal_step":
            (momentum,), state, (mean,) = found
            pairs = zip((state["c"], momentum, mean), expected[:3], strict=True)
        else:
            pairs = [(found, expected)]
        for x, y in pairs:
            assert float((x - y).abs().max()) < 1e-5 * float(y.abs().max())


def test_bytes_and_operations_are_those_of_the_shapes(study):
    cpu = torch.device("cpu")
    assert study.diagonal_step(cpu, 0).bytes == 9 * 4 * 2**18
    assert study.squared_gradients(cpu, 0).operations == 2 * 128 * 128 * 128
    assert study.symmetric_update(cpu, 0).operations == 256 * 129 * 130  # half of 2 * 256 * 129^2, and the diagonal
    assert study.patch_factor(cpu, 0).bytes == 4 * (4 * 8 * 16 * 16 + 72 * 72)
