"""The table of a study."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import environment, mean_error, write_cell
from benchmarks.classification.rows import ROWS
from benchmarks.classification.sizes import folder
from benchmarks.classification.tuning import configurations_of, scores_of


def summarise(root: Path) -> list[dict[str, Any]]:
    """One line per method: means, standard errors, and paired differences to AdamW with bootstrap intervals."""
    cells: dict[str, dict[int, dict[str, Any]]] = {}
    for path in sorted(root.glob("final/*.json")):
        record = json.loads(path.read_text())
        cells.setdefault(record["method"], {})[record["seed"]] = record
    generator = np.random.default_rng(0)
    lines = []
    for method in ROWS:
        if method not in cells:
            continue
        line: dict[str, Any] = {"method": method, "n": len(cells[method])}
        line["cpu_seconds"] = float(np.mean([r["cpu_seconds"] for r in cells[method].values()]))
        line["epochs"] = float(np.mean([r["epochs"] for r in cells[method].values()]))
        for kind in ("mean", "posterior"):
            if kind not in next(iter(cells[method].values())):
                continue
            for metric in ("accuracy", "nll", "brier", "ece"):
                line[f"{kind} {metric}"] = mean_error([r[kind][metric] for r in cells[method].values()])
        found = {seed: best(record) for seed, record in cells[method].items()}
        others = {"adamw": {seed: best(record) for seed, record in cells.get("adamw", {}).items()}}
        if ROWS[method].samples:
            twin = cells.get(f"{method}-det", {})
            others["twin"] = {seed: best(record) for seed, record in twin.items()}
            others["mean weights"] = {seed: record["mean"] for seed, record in cells[method].items()}
        for name, other in others.items():
            for metric in ("accuracy", "nll", "ece") if name != method else ():
                pairs = np.array([found[s][metric] - other[s][metric] for s in sorted(set(found) & set(other))])
                if len(pairs) < 2:
                    continue
                line[f"minus {name} {metric}"] = mean_error(pairs)
                if name == "adamw":
                    draws = generator.choice(pairs, (10000, len(pairs))).mean(1)
                    line[f"minus {name} {metric}"] += [float(q) for q in np.quantile(draws, [0.025, 0.975])]
        lines.append(line)
    return lines


def print_sampling(lines: Sequence[Mapping[str, Any]]) -> None:
    """What sampling does: paired differences to the deterministic twin and to the method's own mean weights."""
    titles = ["method", *(f"{metric} minus {name}" for name in OTHERS for metric in ("NLL", "ECE", "points"))]
    print("\n| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    for line in lines:
        if "minus mean weights nll" not in line:
            continue
        texts = []
        for name in OTHERS.values():
            values = [line.get(f"minus {name} {metric}") for metric in ("nll", "ece", "accuracy")]
            for value, factor, digits in zip(values, (1, 1, 100), (4, 4, 2), strict=True):
                text = f"{factor * value[0]:+.{digits}f} ± {factor * value[1]:.{digits}f}" if value else ""
                texts.append(text)
        print("| " + " | ".join([line["method"], *texts]) + " |")


def print_tuning(arguments: argparse.Namespace, lines: Sequence[Mapping[str, Any]]) -> None:
    """The kept configuration of every method and its loss on the tuning images; digits are tuned in every fold."""
    print("\n| method | kept configuration | NLL on the tuning images |\n|---|---|---|")
    for line in lines:
        method = line["method"]
        scores = None if ROWS[method].epochs_of else scores_of(arguments, method, 0)
        if scores is None:
            continue
        values = configurations_of(arguments, method)[int(np.argmin(scores))]
        kept = ", ".join(f"{key} {value:g}" for key, value in values.items())
        print(f"| {method} | {kept} | {min(scores):.4f} |")


OTHERS = {"its twin": "twin", "its own mean weights": "mean weights"}
"""What a method that samples is compared with: title and key."""


def best(record: Mapping[str, Any]) -> Mapping[str, float]:
    """The prediction that the method is meant for."""
    return record.get("posterior", record["mean"])


def report(arguments: argparse.Namespace) -> None:
    """Print the table as Markdown and write it as JSON beside the cells."""
    root = folder(arguments)
    lines = summarise(root)
    if not lines:
        sys.exit(f"no finished cells in {root}; run the study first")
    write_cell(root / "summary.json", {"lines": lines, "environment": environment()})
    titles = ["method", "epochs", "CPU s", "accuracy %", "NLL", "ECE"]
    titles += ["NLL minus AdamW (95 % bootstrap)", "ECE minus AdamW (95 % bootstrap)", "points minus AdamW"]
    print("| " + " | ".join(titles) + " |")
    print("|" + "---|" * len(titles))
    for line in lines:
        kind = "posterior" if "posterior nll" in line else "mean"
        accuracy, nll, ece = (line[f"{kind} {metric}"] for metric in ("accuracy", "nll", "ece"))
        versus, gap, points = (line.get(f"minus adamw {metric}") for metric in ("nll", "ece", "accuracy"))
        texts = [line["method"], f"{line['epochs']:.0f}", f"{line['cpu_seconds']:.0f}"]
        texts.append(f"{100 * accuracy[0]:.2f} ± {100 * accuracy[1]:.2f}")
        texts += [f"{value:.4f} ± {error:.4f}" for value, error in (nll, ece)]
        texts += [
            f"{value[0]:+.4f} ± {value[1]:.4f} [{value[2]:+.4f}, {value[3]:+.4f}]" if value else ""
            for value in (versus, gap)
        ]
        texts.append(f"{100 * points[0]:+.2f} ± {100 * points[1]:.2f}" if points else "")
        print("| " + " | ".join(texts) + " |")
    print_sampling(lines)
    if arguments.data != "digits":
        print_tuning(arguments, lines)
