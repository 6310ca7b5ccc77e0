"""The tables of the study."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import environment, mean_error, read_cell, write_cell
from benchmarks.sample_space.rows import ROWS
from benchmarks.sample_space.sizes import folder

REFERENCE = "adamw"
"""What all rows are compared with unless another one is asked for."""
Record = Mapping[str, Any]


def chosen(records: Sequence[Record]) -> Record:
    """Of a method's runs with seed 0, the one with the lowest validation loss after the last epoch.

    A configuration that failed with any seed is passed over while there is another one.
    """
    failed = [record["configuration"] for record in records if record["failure"]]

    def score(record: Record) -> tuple[bool, float]:
        value = float(record["validation_loss"])
        return record["configuration"] in failed, value if math.isfinite(value) else math.inf

    return min((record for record in records if record["seed"] == 0), key=score)


def finished(root: Path) -> dict[str, dict[int, Record]]:
    """Method to seed to record, of the configuration that the tuning rule takes."""
    records = [json.loads(path.read_text()) for path in sorted(root.glob("runs/*.json"))]
    found: dict[str, dict[int, Record]] = {}
    for method in ROWS:
        own = [record for record in records if record["method"] == method]
        if any(record["seed"] == 0 for record in own):
            best = chosen(own)["configuration"]
            found[method] = {r["seed"]: r for r in own if r["configuration"] == best}
    return found


def at_time(record: Record, seconds: float) -> float:
    """Validation loss of the last epoch that was finished after so much CPU time."""
    return min((point["loss"] for point in record["curve"] if point["cpu_seconds"] <= seconds), default=math.nan)


def summarise(root: Path, against: str = REFERENCE) -> dict[str, Any]:
    """Figures of one task, with differences to the row ``against``, paired by seed."""
    cells, steps = finished(root), read_cell(root / "step_time.json")
    reference = cells.get(against, {})
    budget = float(np.mean([r["cpu_seconds"] for r in reference.values()])) if reference else math.nan
    lines = []
    for method, records in cells.items():
        runs = [records[seed] for seed in sorted(records)]
        metric = runs[0]["metric"]
        line: dict[str, Any] = {
            "method": method,
            "n": len(runs),
            "configuration": runs[0]["configuration"],
            "epochs": runs[0]["epochs"],
            "cpu_seconds": mean_error([r["cpu_seconds"] for r in runs]),
            "failures": sum(bool(r["failure"]) for r in runs),
            "loss": mean_error([r["test"]["loss"] for r in runs]),
            metric: mean_error([r["test"][metric] for r in runs]),
            f"validation loss in the CPU time of {against}": mean_error([at_time(r, 1.02 * budget) for r in runs]),
        }
        shared = sorted(set(records) & set(reference))
        if method != against and shared:
            for name in ("loss", metric):
                line[f"{name} minus {against}"] = mean_error(
                    [records[s]["test"][name] - reference[s]["test"][name] for s in shared]
                )
        line["curve"] = [
            {key: float(np.mean([r["curve"][k][key] for r in runs])) for key in runs[0]["curve"][k]}
            for k in range(min(len(r["curve"]) for r in runs))
        ]
        lines.append(line)
    return {"lines": lines, "step_time": steps, "environment": environment()}


def report(arguments: argparse.Namespace, tasks: Sequence[str]) -> None:
    """Print the tables as Markdown and write the figures beside the cells."""
    shown = 0
    for task in tasks:
        root = folder(arguments, task)
        summary = summarise(root, arguments.reference)
        if not summary["lines"]:
            continue
        shown += 1
        if arguments.reference == REFERENCE:
            write_cell(root / "summary.json", summary)
        if arguments.curves:
            print_curves(task, summary)
        else:
            print_table(task, summary, arguments.reference)
    if not shown:
        sys.exit(f"no finished cells in {arguments.results}; run the study first")


def print_table(task: str, summary: Mapping[str, Any], against: str = REFERENCE) -> None:
    """Test figures and step times of one task."""
    lines = summary["lines"]
    metric = "bleu" if "bleu" in lines[0] else "accuracy"
    factor = 1.0 if metric == "bleu" else 100.0
    quality = "BLEU" if metric == "bleu" else "accuracy %"
    titles = ["method", "kept configuration", "runs", "CPU s", "test loss", quality]
    other = "AdamW" if against == REFERENCE else against
    titles += [f"loss minus {other}", f"{quality} minus {other}", f"validation loss in {other}'s time"]
    print(f"\n{task}, {lines[0]['epochs']} epochs\n")
    _row(titles)
    _row(["---"] * len(titles))
    for line in lines:
        options = ", ".join(f"{key} {value:g}" for key, value in line["configuration"].items())
        runs = str(line["n"]) + (f" ({line['failures']} failed)" if line["failures"] else "")
        name = line["method"] + (f", {line['epochs']} epochs" if line["epochs"] != lines[0]["epochs"] else "")
        texts = [name, options, runs, f"{line['cpu_seconds'][0]:.1f}", _text(line["loss"], 4)]
        texts.append(_text(line[metric], 2, factor))
        versus = [line.get(f"{key} minus {against}") for key in ("loss", metric)]
        texts.append(_text(versus[0], 4, sign="+") if versus[0] else "")
        texts.append(_text(versus[1], 2, factor, sign="+") if versus[1] else "")
        early = line[f"validation loss in the CPU time of {against}"]
        texts.append(_text(early, 4) if math.isfinite(early[0]) else "no epoch finished")
        _row(texts)
    steps = summary["step_time"]
    if steps:
        print(f"\n{task}, CPU time of a step, {steps['rounds']} rounds in turn\n")
        _row(["method", "ms", f"times {steps['baseline']}, median [quartiles]"])
        _row(["---"] * 3)
        for method, found in steps["methods"].items():
            low, high = found["quartiles"]
            _row([method, f"{found['milliseconds']:.1f}", f"{found['ratio']:.2f} [{low:.2f}, {high:.2f}]"])


def print_curves(task: str, summary: Mapping[str, Any]) -> None:
    """Every epoch of the kept configurations, means over the seeds."""
    metric = "bleu" if "bleu" in summary["lines"][0] else "accuracy"
    print(f"\n{task}\n")
    _row(["method", "epoch", "CPU s", "training loss", "validation loss", metric])
    _row(["---"] * 6)
    for line in summary["lines"]:
        for point in line["curve"]:
            figures = [f"{point[key]:.4f}" for key in ("train_loss", "loss", metric)]
            _row([line["method"], f"{point['epoch']:.0f}", f"{point['cpu_seconds']:.1f}", *figures])


def _row(texts: Sequence[str]) -> None:
    print("| " + " | ".join(texts) + " |")


def _text(pair: Sequence[float], digits: int, factor: float = 1.0, sign: str = "") -> str:
    value, error = (factor * part for part in pair)
    shown = f"{value:{sign}.{digits}f}"
    return f"{shown} ± {error:.{digits}f}" if math.isfinite(error) else shown
