"""Tables of the study, with differences that are paired by seed, and a picture of the corruption curves."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import mean_error, read_cell
from benchmarks.classification.sizes import study_name
from benchmarks.shift_and_ood.images import TASKS
from benchmarks.shift_and_ood.one_run import METHODS, SEVERITIES, cell_path, classification_cell

SEEDS = 5
FIRST, LAST = "<!-- tables: begin -->", "<!-- tables: end -->"
NAMES = {
    "adamw": "AdamW",
    "kfac": "noisy K-FAC",
    "ekfac": "noisy EK-FAC",
    "ekfac-factored": "noisy EK-FAC, factored damping",
    "vogn": "VOGN",
    "ivon": "IVON",
}
TITLES = {
    "mnist": "MNIST",
    "cifar10": "CIFAR-10",
    "cifar10-open": "CIFAR-10, six classes",
}
STRANGE = {"mnist": ("notMNIST", "USPS"), "cifar10": ("Imagenette",), "cifar10-open": ("unknown classes",)}
SCORES = ("max_probability", "entropy", "energy", "mutual_information", "variance")
Figure = Callable[[Mapping[str, Any]], float]


def figures_of(task: str) -> dict[str, tuple[Figure, float, int]]:
    """Heading to a figure of one way of predicting, 1 if more is better or -1, and digits after the point."""
    found: dict[str, tuple[Figure, float, int]] = {
        "accuracy %": (lambda way: 100 * way["test"]["accuracy"], 1, 1),
        "NLL": (lambda way: way["test"]["nll"], -1, 3),
        "ECE": (lambda way: way["test"]["ece"], -1, 3),
    }
    for name in STRANGE[task]:
        found[f"AUROC {name}"] = (lambda way, name=name: way["outside"][name]["entropy"]["auroc"], 1, 3)
    for name in STRANGE[task]:
        found[f"AUROC {name} (MI)"] = (lambda way, name=name: by_mutual_information(way, name), 1, 3)
    if task == "mnist":
        found["NLL on USPS"] = (lambda way: way["outside"]["USPS"]["quality"]["nll"], -1, 3)
        found["ECE on USPS"] = (lambda way: way["outside"]["USPS"]["quality"]["ece"], -1, 3)
    if TASKS[task].corrupted:
        for name, heading in (("nll", "NLL"), ("ece", "ECE")):
            found[f"{heading} corrupted"] = (lambda way, name=name: corrupted(way, name), -1, 3)
    return found


def by_mutual_information(way: Mapping[str, Any], name: str) -> float:
    """AUROC of the mutual information where there are weight samples, of the entropy where it would be zero."""
    score = "mutual_information" if way["way"] == "posterior" else "entropy"
    return float(way["outside"][name][score]["auroc"])


def corrupted(way: Mapping[str, Any], figure: str) -> float:
    """The mean over all corruptions and severities above 0."""
    return float(np.mean([level[figure] for levels in way["corruptions"].values() for level in levels[1:]]))


def read(results: Path, task: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Method to seed to cell, as far as they are finished; every way of predicting has its name under ``"way"``."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for method in METHODS:
        for seed in range(SEEDS):
            path = cell_path(results, task, method, seed)
            if path.exists():
                record = json.loads(path.read_text())
                on_all_images(record, study_name(TASKS[task].data, full=results.name == "full"))
                for way in ("mean", "posterior"):
                    if way in record:
                        record[way]["way"] = way
                found.setdefault(method, {})[seed] = record
    return found


def on_all_images(record: dict[str, Any], study: str) -> None:
    """For a network that the classification study has kept: its figures on all test images, instead of some."""
    kept = record.get("training_cpu_seconds", 0.0) is None
    cell = read_cell(classification_cell(record["method"], study, record["seed"])) if kept else None
    if cell is None or cell["configuration"] != record["configuration"]:
        return
    record["n"] = {"beside strange ones": record["n"]["test"]} | record["n"] | {"test": cell["held_out"]}
    for way in ("mean", "posterior"):
        if way in record:
            record[way]["test"] = cell[way]


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean and the ends of Student's interval at 95 %."""
    from scipy.stats import t

    mean, error = mean_error(values)
    half = float(t.ppf(0.975, len(values) - 1)) * error
    return mean, mean - half, mean + half


def ways_of(cells: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[tuple[str, str]]:
    """(method, way of predicting) of every row: the mean weights, then the posterior predictive."""
    found = []
    for method, by_seed in cells.items():
        found += [(method, way) for way in ("mean", "posterior") if way in next(iter(by_seed.values()))]
    return found


def table(task: str, cells: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """Means and standard errors over seeds."""
    figures = figures_of(task)
    lines = [f"| method | prediction | {' | '.join(figures)} |", "|---" * (2 + len(figures)) + "|"]
    for method, way in ways_of(cells):
        texts = []
        for figure, _, digits in figures.values():
            mean, error = mean_error([figure(record[way]) for record in cells[method].values()])
            texts.append(f"{mean:.{digits}f} ± {error:.{digits}f}")
        lines.append(f"| {NAMES[method]} | {_way(way)} | {' | '.join(texts)} |")
    return lines


def differences(
    task: str, cells: Mapping[str, Mapping[int, Mapping[str, Any]]]
) -> dict[tuple[str, str], dict[str, tuple[float, float, float]]]:
    """(method, compared with) to figure to the posterior predictive minus AdamW, and minus its own mean weights."""
    found: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {}
    for method, way in ways_of(cells):
        if way != "posterior":
            continue
        for other, other_way in (("adamw", "mean"), (method, "mean")):
            seeds = sorted(set(cells[method]) & set(cells.get(other, {})))
            if len(seeds) < 2:
                continue
            found[method, "AdamW" if other == "adamw" else "mean weights"] = {
                heading: interval([figure(cells[method][s][way]) - figure(cells[other][s][other_way]) for s in seeds])
                for heading, (figure, _, _) in figures_of(task).items()
            }
    return found


def difference_lines(task: str, cells: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """The differences as a table: bold where the interval says better, italic where it says worse."""
    figures = figures_of(task)
    lines = [f"| posterior predictive of | minus | {' | '.join(figures)} |", "|---" * (2 + len(figures)) + "|"]
    for (method, other), values in differences(task, cells).items():
        texts = []
        for heading, (_, sign, digits) in figures.items():
            mean, low, high = values[heading]
            text = f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
            better, worse = (low > 0, high < 0) if sign > 0 else (high < 0, low > 0)
            texts.append(f"**{text}**" if better else f"*{text}*" if worse else text)
        lines.append(f"| {NAMES[method]} | {other} | {' | '.join(texts)} |")
    return lines


def score_lines(task: str, cells: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """AUROC of every score; those of the differences between weight samples are there with weight samples only."""
    headings = [f"{name}: {score.replace('_', ' ')}" for name in STRANGE[task] for score in SCORES]
    lines = [f"| AUROC of | prediction | {' | '.join(headings)} |", "|---" * (2 + len(headings)) + "|"]
    for method, way in ways_of(cells):
        texts = []
        for name in STRANGE[task]:
            for score in SCORES:
                entries = [record[way]["outside"][name] for record in cells[method].values()]
                shown = all(score in entry for entry in entries) and (way == "posterior" or score in SCORES[:3])
                values = [entry[score]["auroc"] for entry in entries] if shown else []
                texts.append(f"{mean_error(values)[0]:.3f}" if values else "")
        lines.append(f"| {NAMES[method]} | {_way(way)} | {' | '.join(texts)} |")
    return lines


def text_of(results: Path) -> str:
    """All tables."""
    lines: list[str] = []
    for task in TASKS:
        cells = read(results, task)
        if not cells:
            continue
        record = next(iter(next(iter(cells.values())).values()))
        counts = ", ".join(f"{name} {count}" for name, count in record["n"].items() if count)
        seeds = sorted({seed for by_seed in cells.values() for seed in by_seed})
        lines += [f"### {TITLES[task]}", "", f"Images: {counts}; {record['epochs']} epochs; {len(seeds)} seeds.", ""]
        lines += [*table(task, cells), "", *difference_lines(task, cells), "", *score_lines(task, cells), ""]
    return "\n".join(lines)


def draw(results: Path, path: Path) -> None:
    """ECE over severity, a row of axes for each task and a column for each corruption; bands of standard errors."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    from vogn.plots import severity_curves

    tasks = {task: read(results, task) for task in TASKS if TASKS[task].corrupted}
    tasks = {task: cells for task, cells in tasks.items() if cells}
    names = sorted(next(iter(next(iter(next(iter(tasks.values())).values())).values()))["mean"]["corruptions"])
    canvas = Canvas(figsize=(3.2 * len(names), 3 * len(tasks)), layout="constrained")
    grid = canvas.subplots(len(tasks), len(names), squeeze=False, sharey="row")
    for axes_row, (task, cells) in zip(grid, tasks.items(), strict=True):
        for axes, name in zip(axes_row, names, strict=True):
            curves, bands = {}, {}
            for method, by_seed in cells.items():
                way = "mean" if method == "adamw" else "posterior"
                values = np.array([[level["ece"] for level in r[way]["corruptions"][name]] for r in by_seed.values()])
                pairs = [mean_error(column) for column in values.T]
                curves[NAMES[method]] = [mean for mean, _ in pairs]
                bands[NAMES[method]] = [(mean - error, mean + error) for mean, error in pairs]
            severity_curves(curves, "ECE", severities=(0, *SEVERITIES), intervals=bands, ax=axes)
            axes.set_title(f"{TITLES[task]}: {name.replace('_', ' ')}", fontsize=9)
            axes.get_legend().set_visible(axes is grid[0][0])
    with matplotlib.rc_context({"svg.hashsalt": "shift_and_ood"}):
        options = {"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 90}
        canvas.savefig(path, **options)


def report(results: Path, *, page: Path | None = None, figure: Path | None = None) -> None:
    """Print the tables; write them between the marks of a page, and draw the picture, where these are given."""
    text = text_of(results)
    if not text:
        sys.exit(f"no finished cells in {results}; run the study first")
    print(text)
    if page is not None:
        before, rest = page.read_text().split(FIRST)
        page.write_text(f"{before}{FIRST}\n\n{text}\n{LAST}{rest.split(LAST)[1]}")
    if figure is not None:
        draw(results, figure)


def _way(way: str) -> str:
    return {"mean": "mean weights", "posterior": "posterior predictive"}[way]
