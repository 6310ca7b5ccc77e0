"""The questions about speed on networks of a few weights: every row has numbers or says why not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))


@pytest.fixture(autouse=True)
def no_limit_on_memory(monkeypatch):
    """The limit would stay on the test process."""
    monkeypatch.setattr("resource.setrlimit", lambda *arguments: None)


def registry_names():
    import vogn

    return {f"{method} ({mode})" for method, info in vogn.METHODS.items() for mode in info.modes}


def check_lines(lines, rows):
    """All rows are there, with positive numbers or a reason."""
    assert rows <= set(lines)
    for name, line in lines.items():
        assert line.get("skipped") or (line["ms"] > 0.0 and line["n"] >= 1 and line["ratio"]), name


def run(module, tmp_path, *options):
    from importlib import import_module

    path = tmp_path / f"{module}.json"
    import_module(f"benchmarks.speed.{module}").main(
        ["--tiny", "--rounds", "1", "--results", str(path), "--cases", "mlp", *options]
    )
    return json.loads(path.read_text())["mlp"]


def run_apart(module, tmp_path, *options):
    """In a process that may fork, from the command line."""
    path = tmp_path / f"{module}.json"
    command = [sys.executable, "-m", f"benchmarks.speed.{module}", "--tiny", "--cases", "mlp"]
    subprocess.run(
        [*command, "--results", str(path), *options],
        check=True,
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    return json.loads(path.read_text())["mlp"]


def test_step_time_has_every_method_of_the_registry_in_every_mode(tmp_path):
    names = registry_names()
    found = run("step_time", tmp_path, "--rows", *sorted(names), "kfac 10/100", "slang rank 8")
    check_lines(found["lines"], names | {"SGD, momentum, fused", "AdamW, fused", "kfac 10/100 (variational)"})
    # a network of 50 weights is affordable for all methods
    assert not {name: line for name, line in found["lines"].items() if "skipped" in line}
    assert all("SGD, momentum, fused" in line["ratio"] for line in found["lines"].values())
    assert {"torch", "processor", "threads", "peers"} <= set(found["environment"])
    assert found["command"].startswith("python -m benchmarks.speed.step_time --cases mlp")


def test_a_method_that_cannot_afford_a_network_says_so(tmp_path, monkeypatch):
    from benchmarks.speed.contenders import STATE_LIMIT

    monkeypatch.setitem(STATE_LIMIT, "cpu", 0)
    lines = run("step_time", tmp_path, "--rows", "vogn", "ivon-opt")["lines"]
    assert "the limit here is" in lines["vogn (variational)"]["skipped"]
    assert "ms" in lines["SGD, momentum, fused"]


def test_a_fallback_structure_is_not_measured_under_the_name_of_the_method():
    import torch

    import vogn
    from benchmarks.speed.contenders import UnaffordableError, require_affordable

    model = torch.nn.Linear(3, 2)
    require_affordable(vogn.KFAC(model, variational=False))
    large = vogn.VON(model, variational=False, structure={"*": vogn.structures.Dense(max_dim=4)})
    large.selection = vogn.capture.selection.make_selection(vogn.structures.Dense(max_dim=4), large.fallback)
    with pytest.raises(UnaffordableError, match="Dense is not affordable"):
        require_affordable(large)


def test_kinds_of_steps_are_charged_in_proportion():
    from benchmarks.speed.cases import TINY
    from benchmarks.speed.contenders import Runner, our_row

    runner = Runner(TINY["mlp"], our_row("kfac", False, observe_every=10, refresh_every=100))
    runner.warm_up()
    cost, asked = {"plain": 1.0, "observing": 11.0, "refreshing": 101.0}, []
    runner.seconds_of = lambda kind, steps: asked.append((kind, steps)) or cost[kind]
    assert runner.seconds(2) == pytest.approx(0.9 * 1.0 + 0.09 * 11.0 + 0.01 * 101.0)
    assert asked == [("plain", 2), ("observing", 2), ("refreshing", 2)]


def test_plain_steps_measure_nothing_and_refreshing_steps_factorise():
    from benchmarks.speed.cases import TINY
    from benchmarks.speed.contenders import Runner, our_row

    runner = Runner(TINY["mlp"], our_row("kfac", False, observe_every=10, refresh_every=100))
    runner.warm_up()
    block = runner.optimizer._build()[0].blocks[0]

    def tensors():
        curvature = runner.optimizer._build()[0].state(block)["curvature"]
        return {key: tensor.clone() for key, tensor in curvature.items()}

    def changed(kind):
        old = tensors()
        runner.seconds_of(kind, 1)
        return {key for key, tensor in tensors().items() if not tensor.equal(old[key])}

    assert changed("plain") == set()
    observed = changed("observing")
    assert {"A", "S"} <= observed
    assert changed("refreshing") - observed


def test_per_example_and_curvature_have_their_rows(tmp_path):
    from benchmarks.speed.per_example import PLAIN, ROWS

    lines = run("per_example", tmp_path)["lines"]
    check_lines(lines, set(ROWS))
    assert {PLAIN, "vogn", "torch.func vmap"} <= {name for name, line in lines.items() if "ms" in line}
    found = run("curvature_refresh", tmp_path)
    refused = {name for name, line in found["lines"].items() if "skipped" in line}
    assert refused <= {"curvlinops"}
    assert {"factors, mc", "kfac refresh", "ekfac refresh", "cholesky inverses"} <= set(found["lines"])
    # 4 rows; sides of 6 + 1 and 5, then 5 + 1 and 3
    assert found["numbers"]["operations of the products"] == 2 * 4 * (7**2 + 5**2 + 6**2 + 3**2)


def test_one_thread_is_measured_in_processor_time_and_several_in_elapsed_time(monkeypatch):
    import time

    from benchmarks.speed.measuring import call_seconds, machine

    for threads, clock, slept in (("1", "processor time", False), ("2", "elapsed time", True)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        assert machine()["clock"] == clock
        assert (call_seconds(lambda: time.sleep(0.05), 2) >= 0.05) == slept


def test_factors_are_compared_with_half_of_plain_products():
    from benchmarks.speed.targets import FACTORS, GRADIENT, HALVES, HALVES_NUMBER, TARGETS, measured

    target = next(t for t in TARGETS if t.row == FACTORS and t.reference == HALVES)
    record = {"lines": {FACTORS: {"ratio": {GRADIENT: [1.2, 1.0, 1.4]}}}, "numbers": {HALVES_NUMBER: 0.4}}
    found = measured(target, {"curvature_refresh": {target.case: record}})
    assert found == pytest.approx((3.0, 2.5, 3.5))


def test_prediction_has_its_rows(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.speed.predictive.in_child", lambda body, seconds: dict(body()))
    lines = run("predictive", tmp_path)["lines"]
    check_lines(lines, {"32 forward passes", "predict, diagonal", "predict, Kronecker"})
    assert all("MB" in line for line in lines.values())


def test_memory_has_its_rows_each_from_a_process_of_its_own(tmp_path):
    lines = run_apart("memory", tmp_path, "--rows", "vogn")["lines"]
    assert set(lines) == {"SGD, momentum, fused", "AdamW, fused", "vogn (variational)", "vogn (deterministic)"}
    # momentum and curvature, 4 bytes each; and counters
    assert 8.0 <= lines["vogn (variational)"]["state bytes per parameter"] < 16.0
    assert lines["SGD, momentum, fused"]["state bytes per parameter"] == 4.0


def test_a_rise_is_marked_beyond_spread_and_tolerance():
    from benchmarks.speed.step_time import SGD, compare

    def line(low, middle, high):
        return {"ratio": {SGD: [middle, low, high]}}

    committed = {"mlp": {SGD: line(1, 1, 1), "a": line(1.9, 2.0, 2.1), "b": line(1.9, 2.0, 2.1), "c": {"skipped": "x"}}}
    now = {"mlp": {SGD: line(1, 1, 1), "a": line(2.4, 2.45, 2.5), "b": line(2.5, 2.55, 2.6), "c": line(1, 1, 1)}}
    assert [(name, risen) for _, name, _, _, risen in compare(committed, now)] == [("a", False), ("b", True)]


def test_the_page_names_every_row_and_what_is_aimed_at(tmp_path):
    from benchmarks.speed import report

    folder = tmp_path / "results"
    run("step_time", folder, "--rows", "vogn", "ivon (variational)", "kalman")
    text = report.main(["--results", str(folder), "--docs", str(tmp_path)])
    assert (tmp_path / "speed" / "step_time_mlp.png").stat().st_size > 1000
    for name in ("vogn (deterministic)", "kalman (variational)", "AdamW, fused"):
        assert f"| {name} |" in text
    assert "| mlp | ivon (variational) | AdamW | 1.45 |" in text


def test_the_page_keeps_what_is_written_by_hand(tmp_path):
    from benchmarks.speed import report

    folder = tmp_path / "results"
    run("step_time", folder, "--rows", "vogn (v")
    mine = "<!-- by hand: {} -->\nFirst line,\n\nand another.\n<!-- end by hand -->"
    page = tmp_path / "speed.md"
    page.write_text(f"anywhere\n{mine.format('aims')} {mine.format('step_time')}\n")
    command = ["--results", str(folder), "--docs", str(tmp_path)]
    text = report.main(command)
    aims, steps = text.index(mine.format("aims")), text.index(mine.format("step_time"))
    assert text.index("## Aims") < aims < text.index("## Training steps") < steps < text.index("### MLP")
    assert report.main(command) == text and "anywhere" not in text
    for wrong in (mine.format("nowhere"), mine.format("aims") * 2, "<!-- by hand: aims -->\n", mine.format("memory")):
        page.write_text(wrong)
        with pytest.raises(ValueError, match=r"by hand"):
            report.main(command)
        assert page.read_text() == wrong


def test_parts_of_a_step_add_up_and_leave_no_clock_behind(tmp_path):
    import vogn.kernels.native as native
    from benchmarks.speed.parts import clocks
    from vogn.structures import Diagonal

    before = dict(vars(Diagonal)), native.draw, torch.nn.Module.__call__
    found = run("parts", tmp_path, "--rows", "vogn (v", "ivon (v", "kfac 10/100 (d")["lines"]
    assert {"vogn (variational)", "kfac 10/100 (deterministic), observing"} <= set(found)
    for line in found.values():
        assert all(value > 0.0 for value in line["parts"].values()) and {"forward", "backward"} <= set(line["parts"])
    assert (dict(vars(Diagonal)), native.draw, torch.nn.Module.__call__) == before
    with clocks(None) as clock:
        clock.around(lambda: clock.around(lambda: sum(range(10**5)), "inner")(), "outer")()
    assert 0.0 <= clock.seconds["outer"] < clock.seconds["inner"]


def test_a_failure_in_a_process_of_its_own_is_its_reason():
    """In a process without threads, which may fork."""
    program = """
from benchmarks.speed.measuring import ChildError, in_child
assert in_child(lambda: {"a": 1.5}, 5.0) == {"a": 1.5}
for body, reason in ((lambda: bytearray(2**44), "memory: more than 10 GiB"), (lambda: {}["k"], "KeyError: 'k'")):
    try:
        in_child(body, 5.0)
    except ChildError as error:
        assert str(error).startswith(reason), error
    else:
        raise AssertionError(reason)
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT, timeout=60)


def test_committed_rows_have_numbers_or_a_reason():
    from benchmarks.speed.cases import CASES
    from benchmarks.speed.contenders import FOCUS

    found = json.loads((ROOT / "benchmarks" / "results" / "speed" / "step_time.json").read_text())
    assert set(found) == set(CASES)
    for record in found.values():
        check_lines(record["lines"], set(FOCUS))
