"""Where tuning runs are, and which configuration they choose."""

from __future__ import annotations

import argparse
import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.cells import read_cell
from benchmarks.classification.rows import ROWS, base_of
from benchmarks.classification.sizes import folder, sizes, study_name


def configurations_of(arguments: argparse.Namespace, method: str) -> tuple[dict[str, Any], ...]:
    """The configurations of a row in this study."""
    return ROWS[method].configurations(study_name(arguments.data, full=arguments.full))


def score(record: Mapping[str, Any]) -> float:
    """What tuning minimises: the NLL of the prediction that the method is meant for."""
    value = float(record.get("posterior", record["mean"])["nll"])
    return value if math.isfinite(value) else math.inf


def tuning_cell(arguments: argparse.Namespace, method: str, configuration: int, split: int) -> Path:
    """Where the tuning run of a configuration is; its name changes with the configuration."""
    text = json.dumps(configurations_of(arguments, method)[configuration], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    return folder(arguments, "tuning") / f"{method}-{digest}-{split}.json"


def tuned(arguments: argparse.Namespace, method: str, seed: int) -> int | None:
    """Index of the configuration that is best on average over the splits, or ``None`` while tuning is unfinished."""
    scores = scores_of(arguments, method, seed)
    return None if scores is None else int(np.argmin(scores))


def scores_of(arguments: argparse.Namespace, method: str, seed: int) -> list[float] | None:
    """The mean score of every configuration over the splits, or ``None`` while tuning is unfinished."""
    name = base_of(method)
    splits = [seed] if arguments.data == "digits" else range(sizes(arguments).tune_splits)
    scores = []
    for k in range(len(configurations_of(arguments, method))):
        records = [read_cell(tuning_cell(arguments, name, k, split)) for split in splits]
        if any(record is None for record in records):
            return None
        scores.append(float(np.mean([score(record) for record in records if record is not None])))
    return scores


def remove_stale(path: Path, configuration: Mapping[str, Any]) -> None:
    """A final run of a configuration that tuning would no longer choose is run again."""
    record = read_cell(path)
    if record is not None and record["configuration"] != configuration:
        print(f"{path.name}: tuning chooses another configuration now; run again")
        path.unlink()
