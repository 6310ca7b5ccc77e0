"""The tables of the study."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import mean_error
from benchmarks.uci import ceiling
from benchmarks.uci.data import DATA
from benchmarks.uci.methods import METHODS

PUBLISHED = {
    "SLANG": {
        "boston": (3.21, -2.58), "concrete": (5.58, -3.13), "energy": (0.64, -1.12),
        "power": (4.16, -2.84), "wine_red": (0.65, -0.97), "yacht": (1.08, -1.88),
    },
    "VAdam": {
        "boston": (3.93, -2.85), "concrete": (6.85, -3.39), "energy": (1.55, -2.15),
        "power": (4.28, -2.88), "wine_red": (0.66, -1.01), "yacht": (1.32, -1.70),
    },
    "tuned MC dropout": {
        "boston": (2.90, -2.40), "concrete": (4.82, -2.93), "energy": (0.54, -1.21),
        "power": (4.01, -2.80), "wine_red": (0.62, -0.93), "yacht": (0.67, -1.25),
    },
}  # fmt: skip
"""Published root mean squared error and log-likelihood on the same splits: Mishkin et al. (2018) for SLANG, Khan et al.
(2018) for VAdam, Mukhoti, Stenetorp, Gal (2018) for dropout."""


Cells = dict[str, dict[str, dict[str, Any]]]
"""Data set and method to what was found."""


def finished(root: Path) -> Cells:
    """All cells."""
    out: Cells = {}
    for path in sorted(root.glob("*/*.json")):
        record = json.loads(path.read_text())
        out.setdefault(record["data"], {})[record["method"]] = record
    return out


def over_splits(record: dict[str, Any], key: str) -> list[float]:
    """Mean and standard error."""
    return mean_error([line[key] for line in record["splits"]])


def report(root: Path) -> None:
    """Print both tables as Markdown."""
    found = finished(root)
    if not found:
        sys.exit(f"no finished cells in {root}; run the study first")
    sets = [data for data in DATA if data in found]
    for key, title, place in (("log_likelihood", "test log-likelihood", 1), ("rmse", "test RMSE", 0)):
        print(f"\n| {title} | " + " | ".join(sets) + " |\n|" + "---|" * (len(sets) + 1))
        for method in METHODS:
            texts = []
            for data in sets:
                record = found[data].get(method)
                texts.append("{:.2f} ± {:.2f}".format(*over_splits(record, key)) if record else "")
            print(f"| {method} | " + " | ".join(texts) + " |")
        for method, values in PUBLISHED.items():
            print(f"| {method} (published) | " + " | ".join(f"{values[data][place]:.2f}" for data in sets) + " |")
    exact(found)
    verdict(found)
    records = [record for methods in found.values() for record in methods.values()]
    seconds = sum(record["cpu_seconds"] for record in records)
    count = max(len(record["splits"]) for record in records)
    print(f"\n{count} splits; {seconds / 60:.0f} minutes of processor time.")


def exact(found: Cells) -> None:
    """NUTS beside all methods, on the splits that it was run on."""
    for data in ceiling.SPLITS:
        methods = found.get(data, {})
        if ceiling.NAME not in methods:
            continue
        splits = [line["split"] for line in methods[ceiling.NAME]["splits"]]
        print(f"\n| {data}, splits {splits[0]} to {splits[-1]} | log-likelihood | RMSE |\n|---|---|---|")
        for method in (ceiling.NAME, *METHODS):
            lines = [line for line in methods.get(method, {"splits": []})["splits"] if line["split"] in splits]
            if lines:
                means = [float(np.mean([line[key] for line in lines])) for key in ("log_likelihood", "rmse")]
                print(f"| {method} | {means[0]:.2f} | {means[1]:.2f} |")


def verdict(found: Cells) -> None:
    """On how many data sets noisy K-FAC and EK-FAC are not worse than published means by more than a pooled error.

    Published standard errors are not at hand for all cells: the pooled error takes ours for both, and half a unit of
    the published means' last digit.
    """
    print("\n| not worse by more than a pooled standard error than | log-likelihood | RMSE |\n|---|---|---|")
    for ours in (name for name in METHODS if name.startswith("noisy")):
        sets = [data for data in DATA if ours in found.get(data, {})]
        for method, values in PUBLISHED.items():
            texts = []
            for key, place, sign in (("log_likelihood", 1, 1.0), ("rmse", 0, -1.0)):
                fine = []
                for data in sets:
                    mean, error = over_splits(found[data][ours], key)
                    if sign * (mean - values[data][place]) >= -math.sqrt(2.0) * error - 0.005:
                        fine.append(data)
                texts.append(f"{len(fine)} of {len(sets)} ({', '.join(fine)})")
            print(f"| {ours}: {method} | {' | '.join(texts)} |")
