"""Lengths of the studies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Form:
    """Lengths.

    Args:
        seeds: of regression; split ``k`` of the data has seed ``k``.
        initial: labels to begin with.
        queries: of one label each.
        steps: of the first training.
        update_steps: after every query.
        class_seeds: of classification.
        digits_rounds, mnist_rounds: trainings of classification.
        class_steps, class_update_steps: the same for classification.
    """

    seeds: int = 5
    initial: int = 20
    queries: int = 40
    steps: int = 2000
    update_steps: int = 200
    class_seeds: int = 3
    digits_rounds: int = 25
    mnist_rounds: int = 31
    class_steps: int = 300
    class_update_steps: int = 100


FORMS = {
    "full": Form(
        seeds=20, class_seeds=10, digits_rounds=41, mnist_rounds=41,
        class_steps=1000, class_update_steps=300,
    ),
    "reduced": Form(),
    "smoke": Form(
        seeds=2, initial=5, queries=2, steps=6, update_steps=3,
        class_seeds=1, digits_rounds=2, mnist_rounds=2, class_steps=4, class_update_steps=2,
    ),
}  # fmt: skip
