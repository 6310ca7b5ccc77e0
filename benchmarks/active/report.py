"""Tables and pictures of all cells that are there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.active import classification, regression
from benchmarks.active.sizes import FORMS
from benchmarks.cells import command, environment, mean_error, read_cell, write_cell
from vogn.active import ActiveResult

LEVELS = (0.9, 0.95)
ASKED, RANDOM = regression.QUERIES


def report(results: Path, form: str) -> None:
    """Write ``summary.json`` and pictures, print tables."""
    folder = results / form
    found: dict[str, Any] = {"command": command("benchmarks.active"), "environment": environment()}
    found["regression"] = {data.name: regressions(data) for data in _folders(folder, regression.METHODS)}
    classes = [folder / data for data in ("digits", "mnist") if list((folder / data).glob("*.json"))]
    found["classification"] = {data.name: classifications(data) for data in classes}
    write_cell(folder / "summary.json", found, sort_keys=False)


def _folders(folder: Path, methods: Any) -> list[Path]:
    names = ("yacht", "boston", "energy", "concrete", "power", "wine_red")
    return [folder / data for data in names if list((folder / data).glob("*.json"))]


def show(pair: Sequence[float], digits: int = 2) -> str:
    """Mean and standard error."""
    mean, error = pair
    return f"{mean:.{digits}f}" + ("" if math.isnan(error) else f" ± {error:.{digits}f}")


def regressions(folder: Path) -> dict[str, Any]:
    """A data set: figures averaged over the queries, at the end, and differences to random queries from the same
    start."""
    rows: dict[str, Any] = {}
    reference = read_cell(folder / "nuts.json")
    curves: dict[str, Any] = {}
    structured: dict[str, dict[int, float]] = {}
    for method in regression.METHODS:
        record = read_cell(folder / f"{method.replace(' ', '_').lower()}.json")
        if record is None:
            continue
        runs = {kind: {r["seed"]: r for r in record["runs"] if r["query"] == kind} for kind in regression.QUERIES}
        seeds = sorted(runs[ASKED])
        row: dict[str, Any] = {"cpu s": record["cpu_seconds"], "seeds": len(seeds)}
        for metric in ("rmse", "nll"):
            curve = {kind: np.array([runs[kind][s][metric] for s in seeds]) for kind in regression.QUERIES}
            row[f"first {metric}"] = mean_error(curve[ASKED][:, 0])
            row[f"last {metric}"] = mean_error(curve[ASKED][:, -1])
            row[f"last {metric}, random"] = mean_error(curve[RANDOM][:, -1])
            change = {kind: values[:, 1:].mean(1) for kind, values in curve.items()}
            row[f"mean {metric}"] = mean_error(change[ASKED])
            row[f"mean {metric}, random"] = mean_error(change[RANDOM])
            row[f"gain in mean {metric}"] = mean_error(change[RANDOM] - change[ASKED])
            row[f"gain in last {metric}"] = mean_error(curve[RANDOM][:, -1] - curve[ASKED][:, -1])
        if reference is not None and method != "NUTS":
            row["rank correlation with NUTS"] = mean_error(_agreement(record, reference))
        last = {kind: {s: runs[kind][s]["rmse"][-1] for s in seeds} for kind in regression.QUERIES}
        if method == "noisy K-FAC":
            structured = last
        elif structured and set(seeds) <= set(structured[ASKED]):
            for kind, name in ((ASKED, "last rmse above noisy K-FAC"), (RANDOM, "last rmse above noisy K-FAC, random")):
                row[name] = mean_error([last[kind][s] - structured[kind][s] for s in seeds])
            gains = [[table[RANDOM][s] - table[ASKED][s] for s in seeds] for table in (structured, last)]
            row["gain of noisy K-FAC above this one"] = mean_error(np.subtract(*gains))
        row["distance of questions"] = mean_error([runs[ASKED][s]["neighbour"] for s in seeds])
        row["distance of questions, random"] = mean_error([runs[RANDOM][s]["neighbour"] for s in seeds])
        rows[method] = row
        curves[f"{method}"] = [runs[ASKED][s]["rmse"] for s in seeds]
        curves[f"{method}, random"] = [runs[RANDOM][s]["rmse"] for s in seeds]
    print(f"\n{folder.name}: test RMSE at the end and averaged over the queries; gains over random, paired by seed")
    heads = ("method", "asked", "random", "gain, last", "mean asked", "gain, mean", "gain in NLL")
    print(f"| {' | '.join(heads)} | above K-FAC | K-FAC's gain above | with NUTS | apart | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for method, row in rows.items():
        cells = [
            show(row[key])
            for key in ("last rmse", "last rmse, random", "gain in last rmse", "mean rmse", "gain in mean rmse",
                        "gain in mean nll")
        ]  # fmt: skip
        with_reference = show(row["rank correlation with NUTS"]) if "rank correlation with NUTS" in row else "-"
        for key in ("last rmse above noisy K-FAC", "gain of noisy K-FAC above this one"):
            cells.append(show(row[key]) if key in row else "-")
        apart = show(row["distance of questions"])
        print(f"| {method} | {' | '.join(cells)} | {with_reference} | {apart} | {row['cpu s']:.0f} |")
    _plot_regression(folder, curves)
    return rows


def _agreement(record: dict[str, Any], reference: dict[str, Any]) -> list[float]:
    """Spearman correlation of variances over the pool, at the first labels, which all methods share."""
    from scipy.stats import spearmanr

    def first(cell: dict[str, Any]) -> dict[int, list[float]]:
        runs = [run for run in cell["runs"] if run["query"] == ASKED]
        return {run["seed"]: [float(value) for value in run["first_variance"].split()] for run in runs}

    theirs = first(reference)
    pairs = [(values, theirs[seed]) for seed, values in first(record).items() if seed in theirs]
    return [float(spearmanr(mine, other).statistic) for mine, other in pairs]


def _plot_regression(folder: Path, curves: dict[str, Any]) -> None:
    from matplotlib.figure import Figure

    from vogn.plots import label_curves

    methods = [name for name in curves if not name.endswith(", random")]
    columns = min(3, len(methods))
    lines = math.ceil(len(methods) / columns)
    figure = Figure(figsize=(3.6 * columns, 3.0 * lines), layout="constrained")
    axes = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for place, method in zip(axes.flat, methods, strict=False):
        values = {"information gain": curves[method], "random": curves[f"{method}, random"]}
        labels = range(20, 20 + len(curves[method][0]))
        label_curves(list(labels), values, metric="rmse", ax=place).set_title(f"{folder.name}: {method}", fontsize=9)
    for place in axes.flat[len(methods) :]:
        place.set_axis_off()
    figure.savefig(folder.parent / f"{folder.name}.png", dpi=100)


def classifications(folder: Path) -> dict[str, Any]:
    """A data set: labels needed for the levels, and accuracies over the labels."""
    rows: dict[str, Any] = {}
    runs: dict[str, list[tuple[int, ActiveResult, float]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = read_cell(path)
        assert record is not None
        name = f"{record['method']}, {record['acquisition']}"
        name += "" if record["update"] == "continue" else f", {record['update']}"
        result = ActiveResult.from_dict(record["result"])
        runs.setdefault(name, []).append((record["seed"], result, record["cpu_seconds"]))
    for name, found in runs.items():
        method, *rest = name.split(", ")
        baseline = {seed: result for seed, result, _ in runs.get(", ".join([method, "random"]), [])}
        row: dict[str, Any] = {"seeds": len(found), "cpu s": mean_error([seconds for *_, seconds in found])}
        accuracy = {seed: result.curve("accuracy") for seed, result, _ in found}
        row["mean accuracy"] = mean_error([100 * np.mean(values[1:]) for values in accuracy.values()])
        row["last accuracy"] = mean_error([100 * values[-1] for values in accuracy.values()])
        row["last nll"] = mean_error([result.curve("nll")[-1] for _, result, _ in found])
        gains = [
            100 * (np.mean(values[1:]) - np.mean(baseline[seed].curve("accuracy")[1:]))
            for seed, values in accuracy.items() if seed in baseline
        ]  # fmt: skip
        row["gain in mean accuracy"] = mean_error(gains) if gains and rest != ["random"] else None
        for level in LEVELS:
            row[f"labels for {level:.0%}"] = [result.labels_needed("accuracy", level) for _, result, _ in found]
        rows[name] = row
    print(f"\n{folder.name}: labels needed (- where a run did not get there), test accuracy in per cent")
    print("| method, query | 90 % | 95 % | mean accuracy | gain over random | last accuracy | last NLL | CPU s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name, row in sorted(rows.items(), key=lambda item: -item[1]["mean accuracy"][0]):
        needed = [", ".join("-" if n is None else str(n) for n in sorted(row[f"labels for {level:.0%}"], key=_late))
                  for level in LEVELS]  # fmt: skip
        gain = "" if row["gain in mean accuracy"] is None else show(row["gain in mean accuracy"], 1)
        cells = [*needed, show(row["mean accuracy"], 1), gain, show(row["last accuracy"], 1), show(row["last nll"])]
        print(f"| {name} | {' | '.join(cells)} | {row['cpu s'][0]:.0f} |")
    _plot_classification(folder, runs)
    return rows


def _late(count: int | None) -> float:
    return math.inf if count is None else count


def _plot_classification(folder: Path, runs: dict[str, list[tuple[int, ActiveResult, float]]]) -> None:
    from matplotlib.figure import Figure

    from vogn.plots import label_curves

    methods = [m for m in classification.METHODS if any(name.startswith(f"{m}, ") for name in runs)]
    figure = Figure(figsize=(5.0 * len(methods), 3.8), layout="constrained")
    axes = figure.subplots(1, len(methods), squeeze=False, sharey=True)
    for place, method in zip(axes.flat, methods, strict=True):
        own = {name.split(", ", 1)[1]: found for name, found in runs.items() if name.startswith(f"{method}, ")}
        fewest = min(len(result.rows) for found in own.values() for _, result, _ in found)
        values = {
            name: [result.curve("accuracy")[:fewest] for _, result, _ in found]
            for name, found in own.items() if "," not in name
        }  # fmt: skip
        labels = next(iter(own.values()))[0][1].labels[:fewest]
        label_curves(labels, values, level=LEVELS[1], ax=place).set_title(f"{folder.name}: {method}", fontsize=9)
        place.set_ylim(bottom=0.5)
    figure.savefig(folder.parent / f"{folder.name}.png", dpi=100)


__all__ = ["FORMS", "report"]
