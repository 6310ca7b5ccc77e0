"""How large the study is in each of its forms, and where its cells lie."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results" / "sample_space"
TASKS = ("mnist", "cifar10", "multi30k")


@dataclass(frozen=True)
class Size:
    """Sizes of one task.

    Args:
        train, validation, test: examples of each part; for Multi30k at most so many.
        epochs: of every run.
        batch: examples per step.
        width: of the hidden layers, the first stage, the embedding.
        tokens: Multi30k, longest sentence in words; longer pairs are left out of all parts.
        vocabulary: Multi30k, at most so many words of both languages.
    """

    train: int
    validation: int
    test: int
    epochs: int
    batch: int
    width: int
    tokens: int = 0
    vocabulary: int = 0


@dataclass(frozen=True)
class Form:
    """All tasks in one size.

    Args:
        sizes: of each task.
        seeds: paired seeds.
        rounds: of the comparison of step times.
    """

    sizes: dict[str, Size]
    seeds: int
    rounds: int


FORMS = {
    "full": Form(
        {
            "mnist": Size(12000, 2000, 10000, 6, 64, 400),
            "cifar10": Size(8000, 2000, 5000, 6, 64, 16),
            "multi30k": Size(10000, 1000, 1000, 6, 64, 96, tokens=24, vocabulary=4000),
        },
        seeds=5,
        rounds=50,
    ),
    "reduced": Form(
        {
            "mnist": Size(3200, 1000, 10000, 5, 64, 400),
            "cifar10": Size(3000, 500, 2000, 4, 32, 16),
            "multi30k": Size(5000, 500, 500, 6, 64, 64, tokens=16, vocabulary=2500),
        },
        seeds=5,
        rounds=20,
    ),
    "smoke": Form(
        {
            "mnist": Size(64, 32, 32, 2, 16, 8),
            "cifar10": Size(64, 32, 32, 2, 16, 4),
            "multi30k": Size(64, 32, 32, 2, 16, 8, tokens=12, vocabulary=40),
        },
        seeds=2,
        rounds=2,
    ),
}


def size_of(arguments: argparse.Namespace, task: str) -> Size:
    """The sizes of one task."""
    return FORMS[arguments.form].sizes[task]


def folder(arguments: argparse.Namespace, task: str) -> Path:
    """Where the cells of a task are."""
    return Path(arguments.results) / arguments.form / task
